"""The table of broken data sets in the documentation is what the command says."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def broken_data(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(DOCS))
    yield __import__("broken_data")
    sys.modules.pop("broken_data", None)


@pytest.mark.slow
def test_the_table_is_what_the_command_says(broken_data: object) -> None:
    pytest.importorskip("faster_coco_eval", reason="detectors are judged by it")
    assert broken_data.table() == broken_data.TABLE.read_text(encoding="utf-8")  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["imagefolder", "coco", "voc", "mnist"])
def test_every_situation_has_its_row(broken_data: object, kind: str) -> None:
    rows = broken_data.TABLE.read_text(encoding="utf-8").splitlines()  # type: ignore[attr-defined]
    told = [row.split(" | ")[1] for row in rows if row.startswith(f"| {kind} |")]
    assert told == list(broken_data.KINDS[kind])  # type: ignore[attr-defined]
