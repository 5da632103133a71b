"""Values that a forward keeps for the next pass and computes again for other sizes.

`if self.shape != shape: self.anchors = ...; self.shape = shape` (YOLO's heads) goes one way in the
first pass of a size and another way in the next. A trace that took the way which computes is right
in both, since what is kept follows from the size alone. Such a question needs no guard.
"""

import operator
from collections.abc import Collection
from typing import Any

from torch import fx

from dggraph.compiler.aliasing import Traced, outlasts
from dggraph.compiler.capture import depends_on_input, keep
from dggraph.ops.guards import hold

_PROPERTIES = {"size", "shape", "dim", "ndim", "dtype", "device", "layout"}


def cache_guards(flow: Traced, fx_nodes: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the guards that ask whether what is kept still fits.

    They compare sizes with the attribute in which forward keeps these sizes, and found them
    different. There are none if anything that outlasts a pass depends on the values of the images:
    a sum over passes, for example, which starts again with each size.
    """
    lasting = [one for one in fx_nodes if outlasts(flow, one)]
    if any(one.target is not keep or depends_on_input(one, _read_by_value) for one in lasting):
        return ()
    kept: dict[Any, Any] = {}
    for one in lasting:
        value, path, name = one.args
        if isinstance(value, fx.Node):
            kept[value] = getattr(flow.module.get_submodule(str(path)), str(name), ...)
    return tuple(
        one for one in fx_nodes if one.target is hold and _asks_what_is(kept, *one.args[:2])
    )


def _asks_what_is(kept: dict[Any, Any], question: Any, answer: Any) -> bool:
    """Whether a question compares a value in `kept` with what was kept before, which differed."""
    if getattr(question, "target", None) is not (operator.ne if answer else operator.eq):
        return False
    value, before = question.args
    # a number would equal one that stands in the code by chance
    return value in kept and isinstance(before, tuple | None) and kept[value] == before


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
