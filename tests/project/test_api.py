"""The public names: documented are those that are exported, each with an example that runs."""

import doctest
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dggraph
from dggraph.graph.wiring import WIRINGS
from dggraph.ops.gating import GATES
from dggraph.ops.routing import ROUTERS

API = Path(__file__).resolve().parents[2] / "docs/api.md"
MODULES = {
    "dggraph": dggraph,
    **{
        f"dggraph.{name}": getattr(dggraph, name)
        for name in ("baselines", "detection", "evaluation", "losses", "training")
    },
}


def exported() -> dict[str, Any]:
    """Every public name that is not a module, and what it is."""
    found = {
        f"{path}.{name}": getattr(module, name)
        for path, module in MODULES.items()
        for name in names_in(module)
    }
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def names_in(module: ModuleType) -> list[str]:
    return list(module.__all__)


def test_what_is_documented_is_what_is_exported() -> None:
    documented = re.findall(r"^::: ([\w.]+)$", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(set(documented)) == len(documented)
    assert set(documented) == {*exported(), "dggraph.errors"}


def test_every_name_is_imported_when_it_is_asked_for() -> None:
    for path, module in MODULES.items():
        assert set(names_in(module)) <= set(dir(module)), path
    with pytest.raises(AttributeError, match="module 'dggraph' has no attribute 'covnert'"):
        _ = dggraph.covnert


@pytest.mark.parametrize(
    "name", sorted(name for name, value in exported().items() if not isinstance(value, dict))
)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = exported()[name]
    found = doctest.DocTestFinder().find(value, name, module=False)
    assert sum(len(one.examples) for one in found) > 1, f"{name} has no example"
    saved = [(registry, dict(registry)) for registry in (ROUTERS, GATES, WIRINGS)]
    said: list[str] = []
    try:
        for one in found:
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(one, out=said.append)
    finally:
        for registry, before in saved:
            registry.clear()
            registry.update(before)
    assert not said, "".join(said)
