"""Paths of modules before they moved still lead to them, with a warning that names the new one."""

import importlib
import sys

import pytest

from dggraph.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_path_leads_to_the_module(old: str) -> None:
    new = f"dggraph.{MOVED[old]}"
    sys.modules.pop(f"dggraph.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"dggraph.{old} is called {new} now"):
        found = importlib.import_module(f"dggraph.{old}")
    assert found is importlib.import_module(new)
    assert found.__name__ == new


def test_names_are_imported_from_the_old_room() -> None:
    for name in ("dggraph.runtime.network", "dggraph.runtime"):
        sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=r"dggraph.network.network now"):
        from dggraph.runtime import network
    from dggraph.network.network import DynamicNetwork

    assert network.DynamicNetwork is DynamicNetwork


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"dggraph\.runtime\.nowhere"):
        importlib.import_module("dggraph.runtime.nowhere")
