"""Find identity residuals by structure, never by values.

A zero-initialised branch would make any rewrite look exact. A block whose output is `x + F(x)` can
be lifted: it becomes F alone, and its identity skip becomes edges. The static network is then
exactly the complete graph with every weight 1.
"""

import operator

import torch
from torch import fx

from dggraph.compiler.aliasing import overwritten, writers
from dggraph.compiler.regions import Flow, Region

StageAdds = tuple[tuple[fx.Node, ...], ...]
"""For each block of a stage, its identity adds in the trace, in execution order."""
_ADDS = {operator.add, operator.iadd, torch.add}
_ADD_METHODS = {"add", "add_"}


def identity_adds(flow: Flow, region: Region) -> tuple[fx.Node, ...]:
    """Return the residual adds that lead from the block's input straight to its output.

    They are in execution order. Empty if an op follows the last add (ResNet's ReLU), an operand is
    scaled (`alpha`), the branch has another shape and only broadcasts (x + g(pool(x))), or an op
    inside overwrites the sum or a tensor that the identity still needs.
    """
    source, current = flow.by_name[region.input], flow.by_name[region.output]
    inside = {flow.by_name[name] for name in region.fx_nodes}
    adds: list[fx.Node] = []
    while current is not source:
        if current not in inside or not is_add(current):
            return ()
        candidates = [
            operand
            for operand in current.args
            if operand is source or _leads_to(operand, source, inside)
        ]
        if len(candidates) != 1 or len(set(current.args)) != 2:
            return ()
        if (
            len(
                {
                    flow.profile.shapes.get(fx_node.name)
                    for fx_node in (current, *current.all_input_nodes)
                }
            )
            != 1
        ):
            return ()
        adds.append(current)
        (current,) = candidates
    ends = {fx_node.name for fx_node in adds}
    for carried in (source, *adds):
        if any(
            writer in inside and overwritten(flow, writer)
            for writer in writers(flow, carried, apart_from=ends)
        ):
            return ()
    return tuple(reversed(adds))


def branch(add: fx.Node, identity: fx.Node) -> fx.Node:
    """Return the operand of `add` that is not the identity: F(x)."""
    return next(operand for operand in add.args if operand is not identity)  # type: ignore[return-value]


def is_add(fx_node: fx.Node) -> bool:
    """Whether `fx_node` adds two values without a factor."""
    is_add = (fx_node.op == "call_function" and fx_node.target in _ADDS) or (
        fx_node.op == "call_method" and fx_node.target in _ADD_METHODS
    )
    return (
        is_add
        and not fx_node.kwargs
        and len(fx_node.args) == 2
        and all(isinstance(arg, fx.Node) for arg in fx_node.args)
    )


def _leads_to(operand: object, source: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether `operand` is an add on the line from `source`."""
    return (
        isinstance(operand, fx.Node)
        and operand in inside
        and is_add(operand)
        and any(arg is source or _leads_to(arg, source, inside) for arg in operand.args)
    )
