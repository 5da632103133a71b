"""Restore the types in which a backbone returns its tensors.

These are model outputs, mappings and sequences of any class, dataclasses and named tuples. Plain fx
supports dicts, lists, tuples and named tuples only. `plain` reduces the output to these;
`restore_structure` writes the ops that rebuild the returned types from them.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import fx

_KEYS = (str, int, float, bool, tuple, type(None))


def plain(returned: Any) -> Any:
    """Return `returned` in types that fx can print.

    A mapping becomes a dict, or a list of its values if a key has no source text.
    """
    if isinstance(returned, Mapping):
        if all(type(key) in _KEYS for key in returned):
            return {key: plain(part) for key, part in returned.items()}
        return [plain(part) for part in returned.values()]
    if dataclasses.is_dataclass(returned) and not all(
        field.init for field in dataclasses.fields(returned)
    ):
        return {name: plain(getattr(returned, name)) for name in _arguments(returned)}
    if isinstance(returned, SimpleNamespace):
        return {name: plain(part) for name, part in vars(returned).items()}
    if isinstance(returned, list | tuple):
        parts = [plain(part) for part in returned]
        return (
            type(returned)(*parts)
            if hasattr(returned, "_fields")
            else tuple(parts)
            if isinstance(returned, tuple)
            else parts
        )
    return returned


def restore_structure(graph: fx.Graph, returned: Any, written: Any) -> Any:
    """Return `written`, an argument of `graph`, in the types of `returned`.

    The ops that build them are added at the insertion point of `graph`.

    Args:
        graph: gets the ops.
        returned: what the backbone's forward returned while it was traced.
        written: the form in which fx recorded it.
    """
    if isinstance(written, fx.Node):
        if written.target is type(returned) and dataclasses.is_dataclass(returned):
            with graph.inserting_before(written):
                names = [name for name in _arguments(returned) if name in written.kwargs]
                parts = {
                    name: restore_structure(graph, getattr(returned, name), written.kwargs[name])
                    for name in names
                }
            written.kwargs = parts
        return written
    if dataclasses.is_dataclass(returned) and isinstance(written, Mapping):
        parts = {
            name: restore_structure(graph, getattr(returned, name), part)
            for name, part in written.items()
        }
        return graph.call_function(
            type(returned), (), {name: parts.get(name) for name in _arguments(returned)}
        )
    if isinstance(returned, SimpleNamespace):
        return graph.call_function(
            SimpleNamespace,
            (),
            {
                name: restore_structure(graph, part, written[name])
                for name, part in vars(returned).items()
            },
        )
    if isinstance(returned, Mapping):
        values = list(written.values() if isinstance(written, Mapping) else written)
        restored = [
            restore_structure(graph, one, part)
            for one, part in zip(returned.values(), values, strict=True)
        ]
        if type(returned) is dict and isinstance(written, Mapping):
            return dict(zip(written, restored, strict=True))
        return graph.call_function(_refill(returned), (restored,))
    if isinstance(written, list | tuple) and isinstance(returned, list | tuple):
        restored = [
            restore_structure(graph, one, part) for one, part in zip(returned, written, strict=True)
        ]
        if hasattr(written, "_fields"):
            return type(written)(*restored)
        if type(returned) in (list, tuple):
            return type(written)(restored)
        return graph.call_function(type(returned), (restored,))
    return written


def _arguments(returned: Any) -> list[str]:
    """Return the names of the arguments that build the dataclass of `returned`.

    A ModelOutput may have lost entries since it was built.
    """
    return [field.name for field in dataclasses.fields(returned) if field.init]


def _refill(returned: Mapping[Any, Any]) -> Callable[[list[Any]], Any]:
    """Return a function that makes a mapping from new values.

    The mapping has the class and the keys of `returned`.
    """
    keys, kind = tuple(returned), type(returned)
    factory = returned.default_factory if isinstance(returned, defaultdict) else None

    def refill(values: list[Any]) -> Any:
        pairs = dict(zip(keys, values, strict=True))
        return kind(factory, pairs) if issubclass(kind, defaultdict) else kind(pairs)  # type: ignore[call-arg]

    refill.__name__ = refill.__qualname__ = f"refill_{kind.__name__}"
    return refill
