"""`dggraph compare`: what it prints, as text and as JSON, and its exit codes."""

import json
import sys
from pathlib import Path

import fake_worker
import pytest
from toy_comparison import write_comparison

from dggraph.cli.main import main
from dggraph.comparing import queue

METHODS = "[methods.static]\nrouter = 'none'\n[methods.fails]\n"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "WORKER", (sys.executable, fake_worker.__file__))
    monkeypatch.setattr(queue, "PAUSE", 0.005)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_a_queue_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_comparison(tmp_path, METHODS)
    code, out, _ = run(capsys, file, "--list")
    assert code == 0
    assert out.splitlines()[0] == "waiting static, seed 0"
    assert "0 of 4 runs done, 0 failed" in out
    code, out, _ = run(capsys, file)
    assert code == 4
    assert out.splitlines()[:2] == [
        "static, seed 0: 50.00%; 3 left",
        "fails, seed 0: failed: no such thing; 2 left",
    ]
    assert "2 of 4 runs done, 2 failed (--retry starts them again)" in out
    code, out, _ = run(capsys, file, "--list")
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["done", "failed"] * 2
    _, out, _ = run(capsys, file, "--retry")
    assert out.count("no such thing") == 2


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_comparison(tmp_path, METHODS, seeds="[0]")
    _, out, _ = run(capsys, file, "--json", "--hours", 1, "--jobs", 2)
    assert json.loads(out) == {
        "rows": str(tmp_path / "output" / "rows.jsonl"),
        "done": 1,
        "failed": 1,
        "waiting": 0,
        "notes": [],
    }
    _, out, _ = run(capsys, file, "--json", "--list")
    document = json.loads(out)
    assert [one["state"] for one in document["runs"]] == ["done", "failed"]
    assert document["foreign"] == 0
    assert document["notes"] == []


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, tmp_path / "missing.toml")
    assert code == 2 or "missing.toml" in error
    file = write_comparison(tmp_path, METHODS + "lrr = 1\n")
    code, _, error = run(capsys, file)
    assert code == 4
    assert "unknown key 'lrr'" in error
