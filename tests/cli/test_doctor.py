"""`dggraph doctor`: one document with the same keys everywhere, and nothing that is needed is left
out.
"""

import json
import platform
import re
from typing import Any

import pytest
import torch
from command_line import run
from pages import ROOT, tomllib

import dggraph
from dggraph.cli import doctor

TOP = ["python", "system", "dggraph"]
REST = ["drawing program", "kernels", "threads", "accelerator", "GPU kernels"]


def names(requirements: list[str]) -> list[str]:
    """The packages of requirements: `tomli` is part of newer Pythons."""
    found = [re.split(r"[^\w-]", one)[0] for one in requirements]
    return [name for name in found if name != "tomli"]


def facts(capsys: Any) -> dict[str, str]:
    code, out, err = run(capsys, "doctor", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    return dict(json.loads(out))


def test_every_package_is_named_and_no_other(capsys: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = names(project["dependencies"])
    for extra in extras.keys() - {"test", "docs"}:
        wanted += names(extras[extra])
    assert sorted(facts(capsys)) == sorted([*TOP, *wanted, *REST])


def test_what_is_said_is_true(capsys: Any) -> None:
    found = facts(capsys)
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["python"] == platform.python_version()
    assert found["dggraph"] == dggraph.__version__
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())


def test_keys_stay_where_nothing_is_installed(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(facts(capsys))
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    found = facts(capsys)
    assert list(found) == before
    assert found["safetensors"] == "missing"
    assert found["flask"] == found["waitress"] == "not installed (pip install 'dggraph[view]')"


def test_text_has_a_line_for_each_fact(capsys: Any) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert lines == facts(capsys)


def test_the_page_names_the_keys() -> None:
    told = re.search(
        r"`doctor --json` has the same keys.*?\n\n",
        (ROOT / "docs/command-line.md").read_text(),
        re.DOTALL,
    )
    assert told is not None
    assert re.findall(r"`([\w ]+)`", told[0])[: len(TOP) + len(REST)] == [*TOP, *REST]
