"""The types a backbone returns its tensors in: model outputs, ordered mappings, dataclasses, named tuples. Plain fx keeps dicts only."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import fx


def restore_structure(graph: fx.Graph, returned: Any, written: Any) -> Any:
    """`written`, an argument of `graph`, in the types of `returned`; ops that build them are added where `graph` stands.

    Args:
        graph: gets the ops.
        returned: what the backbone's forward returned while it was traced.
        written: what fx made of it.
    """
    if isinstance(written, fx.Node):
        if written.target is type(returned) and dataclasses.is_dataclass(returned):
            with graph.inserting_before(written):
                parts = {key: restore_structure(graph, getattr(returned, key), part) for key, part in written.kwargs.items()}
            written.kwargs = parts
        return written
    if isinstance(written, Mapping):
        parts = {key: restore_structure(graph, returned[key], part) for key, part in written.items()}
        if type(returned) is dict:
            return parts
        if dataclasses.is_dataclass(returned):
            names = [field.name for field in dataclasses.fields(returned) if field.init]
            return graph.call_function(type(returned), (), {name: parts.get(name) for name in names})
        return graph.call_function(type(returned), (parts,))
    if isinstance(written, list | tuple) and isinstance(returned, list | tuple):
        restored = [restore_structure(graph, one, part) for one, part in zip(returned, written, strict=True)]
        return type(written)(*restored) if hasattr(written, "_fields") else type(written)(restored)
    return written
