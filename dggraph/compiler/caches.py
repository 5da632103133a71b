"""Values that a forward keeps for the next pass and computes anew for other sizes.

`if self.shape != shape: self.anchors = ...; self.shape = shape` (YOLO's heads) goes one way in the
first pass of a size and another way in the next. A trace that took the way which computes is right
in both, since what is kept follows from the size alone. Such a question needs no guard.
"""

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx

from dggraph.compiler.capture import keep
from dggraph.ops.guards import hold

_PROPERTIES = {"size", "shape", "dim", "ndim", "dtype", "device", "layout"}


def cache_guards(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the guards of a trace that ask whether what is kept still fits.

    They compare a value with what its module kept from the pass before, found it different, and
    keep it in its place; and nothing that this module keeps depends on the values of the images.
    """
    kept = {
        one.args[0]: one.args[1]
        for one in graph.nodes
        if one.target is keep and isinstance(one.args[0], fx.Node)
    }
    for guard in graph.nodes:
        if guard.target is not hold:
            continue
        question, answer = guard.args[:2]
        is_different = getattr(question, "target", None) is (operator.ne if answer else operator.eq)
        if not is_different:
            continue
        keys = question.all_input_nodes
        if len(keys) == 1 and keys[0] in kept:
            beside = [value for value, path in kept.items() if path == kept[keys[0]]]
            if not any(map(_depends_on_values, beside)):
                yield guard


def drop_cache_guards_(graph: fx.Graph) -> None:
    """Let the guards of caches pass, whatever the sizes are. In place."""
    for guard in cache_guards(graph):
        _, answer, place = guard.args
        guard.args = (answer, answer, place)


def _depends_on_values(fx_node: fx.Node) -> bool:
    """Whether a value depends on the images by more than their size and type."""
    seen, open_ends = {fx_node}, [fx_node]
    while open_ends:
        current = open_ends.pop()
        if current.op == "placeholder":
            return True
        fresh = set(_read_by_value(current)) - seen
        seen |= fresh
        open_ends += fresh
    return False


def _read_by_value(fx_node: fx.Node) -> list[fx.Node]:
    """Return the operands of which an op reads more than size and type."""
    name = fx_node.args[1] if fx_node.target is getattr else fx_node.target
    if name in _PROPERTIES:
        return []
    read: Any = (fx_node.args, fx_node.kwargs)
    if fx_node.op == "call_method" and name == "type_as":
        read = fx_node.args[0]
    elif fx_node.op == "call_method" and str(name).startswith("new_"):
        read = (fx_node.args[1:], fx_node.kwargs)
    found: list[fx.Node] = []
    fx.map_arg(read, found.append)
    return found
