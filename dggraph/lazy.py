"""Lazy imports of public names, so that `import dggraph` does not import torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: the name of the package.
        homes: maps each public name to the module that defines it; a submodule of the package maps
            to itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(homes[name])
        return home if home.__name__ == f"{package}.{name}" else getattr(home, name)

    def names() -> list[str]:
        return sorted(homes)

    return get, names
