"""Find growing concats (DenseNet): each layer reads all operands before it and adds one.

Every operand of the growing concat is an edge. If all edges are open, the stage is the backbone;
the operand of a closed edge is zeros. A growth stage is therefore always the complete graph.
"""

import torch
from torch import fx

from dggraph.compiler.regions import Flow, Region

MIN_LAYERS = 2


def find_growths(flow: Flow) -> list[tuple[str, tuple[Region, ...], str, int]]:
    """Return all growing concats.

    Returns:
        For each, (entry fx node, layers in order, last concat's fx node, channel axis).
    """
    concats = [
        fx_node for fx_node in flow.order if _is_concat(fx_node) and fx_node in flow.activations
    ]
    operands = {concat: _operands(concat, concats) for concat in concats}
    found: list[tuple[str, tuple[Region, ...], str, int]] = []
    taken: set[fx.Node] = set()
    for last in sorted(concats, key=lambda concat: -len(operands[concat])):
        entry, *layers = operands[last]
        if (
            last in taken
            or len(layers) < MIN_LAYERS
            or len(set(operands[last])) != len(operands[last])
        ):
            continue
        regions: list[Region] = []
        for index, output in enumerate(layers, start=1):
            sources = [concat for concat in concats if operands[concat] == operands[last][:index]]
            region = _layer(flow, [*sources, *([entry] if index == 1 else [])], output)
            if region is None:
                break
            regions.append(region)
        if len(regions) == len(layers):
            axis = 1 if last.args[1:] in ((1,), ()) and last.kwargs.get("dim", 1) == 1 else -1
            found.append((entry.name, tuple(regions), last.name, axis))
            taken.update(
                concat for concat in concats if set(operands[concat]) <= set(operands[last])
            )
    return found


def _is_concat(fx_node: fx.Node) -> bool:
    if fx_node.op != "call_function" or fx_node.target not in (torch.cat, torch.concat):
        return False
    axis = fx_node.args[1] if len(fx_node.args) > 1 else fx_node.kwargs.get("dim", 0)
    return axis in (1, -1) and bool(fx_node.args) and isinstance(fx_node.args[0], list | tuple)


def _operands(concat: fx.Node, concats: list[fx.Node]) -> list[fx.Node]:
    """Return the operands of `concat`, with each inner concat replaced by its own operands."""
    flat: list[fx.Node] = []
    for operand in concat.args[0]:  # type: ignore[union-attr]
        flat += _operands(operand, concats) if operand in concats else [operand]  # type: ignore[arg-type, list-item]
    return flat


def _layer(flow: Flow, sources: list[fx.Node], output: fx.Node) -> Region | None:
    """Return the region from one of `sources` to `output`.

    Returns None if a value that `output` depends on does not start at a source.
    """
    for source in sources:
        members, open_ends = set[fx.Node](), [output]
        while open_ends:
            fx_node = open_ends.pop()
            if fx_node is source or fx_node in members or fx_node not in flow.order:
                continue
            if fx_node.op == "placeholder" or flow.order[fx_node] < flow.order[source]:
                if fx_node in flow.activations:
                    break
                continue
            members.add(fx_node)
            open_ends += flow.inputs(fx_node)
        else:
            stack = list((output.meta.get("nn_module_stack") or {}).values())
            shared = [path for path, _ in stack[:-1]] or [output.name]
            region = flow.region(members, shared[-1], "layer")
            if region is not None and region.input == source.name:
                return region
    return None
