"""An exported program for viewers, and the names of the operations of each block in it.

The names are the ids that viewers of exported programs give to nodes.
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.export import ExportedProgram

from dggraph.errors import ExportError
from dggraph.exporting.comparison import comparison_images
from dggraph.exporting.formats import write
from dggraph.network.network import DynamicNetwork
from dggraph.system.modes import evaluating


class NamedProgram(NamedTuple):
    """A network as an exported program, with the operations of its blocks."""

    content: bytes
    """The file, for `torch.export.load`."""
    operations: dict[str, tuple[str, ...]]
    """{block: names of its operations}."""


def name_operations(net: DynamicNetwork) -> NamedProgram:
    """Export `net` for one image, with every block run, and find the operations of each block.

    These are the operations of its modules, and all between them. The batch is fixed, since Model
    Explorer cannot open a program that has symbolic sizes in outputs of several tensors.

    Args:
        net: A converted network. It is not changed.

    Raises:
        ExportError: The network cannot be exported, or no block of it can be found in the result.
    """
    with evaluating(net):
        content = write(net, comparison_images(net, None)[:1], "pt2", batch=1).content
    program = torch.export.load(io.BytesIO(content))
    paths = {
        block.name: block.module_path
        for stage in net.graph.stages
        for block in net.graph.nodes(stage)
        if block.kind == "block" and block.module_path
    }
    found = find_operations(program, paths)
    if not found:
        raise ExportError(
            "no block of this network can be found in its exported program, since its blocks are"
            " not modules of their own. Draw its paths as SVG or JSON instead."
        )
    return NamedProgram(content, found)


def find_operations(
    program: ExportedProgram, paths: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return the names of the operations of each block that is found in `program`.

    Args:
        program: An exported program.
        paths: {block: module path}.
    """
    calls = [fx_node for fx_node in program.graph.nodes if fx_node.op == "call_function"]
    modules = [_modules_of(fx_node) for fx_node in calls]
    found = {}
    for block, path in paths.items():
        places = [
            place
            for place, names in enumerate(modules)
            if any(name == path or name.startswith(f"{path}.") for name in names)
        ]
        if places:
            inside = calls[places[0] : places[-1] + 1]
            found[block] = tuple(fx_node.name for fx_node in inside)
    return found


def _modules_of(fx_node: torch.fx.Node) -> Sequence[str]:
    stack = fx_node.meta.get("nn_module_stack", {})
    return [name for name, _ in stack.values()]
