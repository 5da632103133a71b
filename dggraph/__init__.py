"""dggraph: turn any static vision backbone into a Dynamic Graph Network (arXiv 2010.01097).

The names below are the whole public surface; each is imported on first use, so `import dggraph` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dggraph.runtime.archive import load, save
    from dggraph.runtime.conversion import convert
    from dggraph.runtime.recording import record
    from dggraph.views.drawing import render

__version__ = "0.1.0"
__all__ = ["convert", "load", "record", "render", "save"]

_HOMES = {
    "convert": "dggraph.runtime.conversion",
    "load": "dggraph.runtime.archive",
    "record": "dggraph.runtime.recording",
    "render": "dggraph.views.drawing",
    "save": "dggraph.runtime.archive",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dggraph' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
