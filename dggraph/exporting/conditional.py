"""One condition a block: a graph for one image that does not compute the blocks it skips.

`conditional` moves what belongs to one block into a branch of `torch.cond`: the sum in front of it,
the block itself, and the router that reads its output. What the other branch gives counts nowhere,
since edges that leave a dead node are closed. The condition is whether an open edge leads
to the block and, where a `stage` router has decided all edges before, whether the block leads on to
`out`.

A condition has one answer, so the batch size is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from dggraph.compiler.edge_writer import stage_topology
from dggraph.compiler.hooked_plan import hooked_blocks, hooked_layers
from dggraph.compiler.lowered import LoweredModule
from dggraph.compiler.partition import as_modules_are
from dggraph.compiler.planning import BlockPlan, StagePlan
from dggraph.exporting.plain_graphs import module_of, plain_graph
from dggraph.exporting.reachability import settle_one, which_are_needed
from dggraph.network.network import DynamicNetwork
from dggraph.ops.aggregation import adapt
from dggraph.ops.granularity import largest
from dggraph.ops.liveness import Topology, settle


@dataclass(frozen=True, slots=True)
class Conditional:
    """A network as a graph with conditions."""

    module: fx.GraphModule
    """Takes images (1, C, H, W), and returns the backbone's output."""
    blocks: tuple[str, ...]
    """The blocks that have a condition."""
    always: tuple[tuple[str, str], ...]
    """(stage, reason) of each stage whose blocks run always."""


def conditional(net: DynamicNetwork, image: Tensor) -> Conditional:
    """Return `net` as a graph in which each block has one condition.

    Args:
        net: In eval mode; modules are shared with it.
        image: (1, C, H, W), of the size that the graph is for.

    Raises:
        ExportError: As `module_of`.
    """
    lowered = net.lowered
    plan = as_modules_are(lowered, hooked_layers(lowered, hooked_blocks(lowered, net.plan)))
    graph, by_name = plain_graph(lowered)
    for fx_node in graph.nodes:
        if fx_node.target is settle:
            fx_node.target = settle_one
    values = _Values(module_of(lowered, graph))
    with torch.no_grad():
        values.run(image)
    added: dict[str, nn.Module] = {}
    blocks: list[str] = []
    for stage in plan:
        if stage.dense_only:
            continue
        topology = stage_topology(net.graph, stage.name)
        for vertex, block in enumerate(stage.blocks, start=1):
            region = _region(graph, by_name, stage, block)
            with graph.inserting_after(region[-1]):
                anchor = graph.create_node("placeholder", "anchor")
            with graph.inserting_before(anchor):
                runs = _condition(graph, by_name, stage, vertex, topology)
                _replace(graph, lowered, region, runs, f"dg_run_{block.node}", values.known, added)
            graph.erase_node(anchor)
            blocks.append(block.node)
    module = module_of(lowered, graph, added)
    graph.lint()
    always = tuple((stage.name, stage.dense_only) for stage in plan if stage.dense_only)
    return Conditional(module, tuple(blocks), always)


class RunOrSkip(nn.Module):
    """Runs a block where the condition holds, and else gives tensors of the same shapes.

    Nothing reads those. They are copies of inputs where one has the shape, since exporters would
    store zeros of the size of features in the file.

    Args:
        block: takes its input and returns a tuple.
        outputs: their shapes and types.
    """

    def __init__(
        self, block: fx.GraphModule, outputs: Sequence[tuple[torch.Size, torch.dtype]]
    ) -> None:
        """Keep the block and what it gives."""
        super().__init__()
        self.block, self.outputs = block, [(tuple(shape), dtype) for shape, dtype in outputs]
        # torch.export hands out submodules wrapped, and `cond` of torch 2.10 cannot trace those
        self.unwrapped = (block,)

    def forward(self, runs: Tensor, *inputs: Tensor) -> Any:
        """Return the outputs of the block as a tuple; `runs` is 0-d and bool."""
        return torch.cond(runs, *self.unwrapped, self.skip, inputs)

    def skip(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return a tensor for each output of the block."""
        found = []
        for shape, dtype in self.outputs:
            like = [one for one in inputs if one.shape == shape and one.dtype == dtype]
            found.append(
                like[-1].clone(memory_format=torch.contiguous_format)
                if like
                else torch.zeros(shape, dtype=dtype, device=inputs[0].device)
            )
        return tuple(found)


def is_reached(weights: Tensor) -> Tensor:
    """Whether an edge of the one image is open, by its weights (1, E, ...); 0-d."""
    return (weights != 0).any()


class _Values(fx.Interpreter):
    """Runs a graph and keeps shapes and types of tensors, and all other values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.known: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.known[n.name] = (value.shape, value.dtype) if isinstance(value, Tensor) else value
        return value


def _region(
    graph: fx.Graph, by_name: dict[str, fx.Node], stage: StagePlan, block: BlockPlan
) -> list[fx.Node]:
    """Return what runs or not with `block`, in execution order."""
    total = by_name[block.input]
    adapters = [one for one in total.all_input_nodes if one.target is adapt]
    present = set(graph.nodes)
    inside = {by_name[name] for name in block.fx_nodes} & present
    members = {total, *inside, *(one for one in adapters if set(one.users) == {total})}
    for fx_node in graph.nodes:
        reads = set(fx_node.all_input_nodes)
        is_own = fx_node.name in stage.own and fx_node.target is not torch.cat
        is_decider = fx_node.op == "call_module" or fx_node.target is largest
        if is_own and is_decider and reads and reads <= members:
            members.add(fx_node)
    return [fx_node for fx_node in graph.nodes if fx_node in members]


def _condition(
    graph: fx.Graph, by_name: dict[str, fx.Node], stage: StagePlan, vertex: int, topology: Topology
) -> fx.Node:
    """Write the condition of the block at `vertex`."""
    weights: Any = by_name[stage.blocks[vertex - 1].input].args[1]
    if stage.scope != "stage":
        return graph.call_function(is_reached, (weights,))
    (decided, *_) = weights.args  # `weights` are narrowed from those of all edges
    needed = next((one for one in decided.users if one.target is which_are_needed), None)
    if needed is None:
        needed = graph.call_function(which_are_needed, (decided, topology))
    return graph.call_function(getitem, (needed, vertex))


def _replace(
    graph: fx.Graph,
    lowered: LoweredModule,
    region: Sequence[fx.Node],
    runs: fx.Node,
    name: str,
    known: dict[str, Any],
    added: dict[str, nn.Module],
) -> None:
    """Replace `region` by a call of a `RunOrSkip`, which is put into `added`. In place."""
    members, inner = set(region), fx.Graph()
    outside = dict.fromkeys(
        read for fx_node in region for read in fx_node.all_input_nodes if read not in members
    )
    twins: dict[fx.Node, Any] = {}
    inputs = [read for read in outside if read.op != "get_attr" and _is_tensor(known[read.name])]
    for read in inputs:
        twins[read] = inner.placeholder(read.name)
    for read in outside:
        if read.op == "get_attr":
            twins[read] = inner.node_copy(read)
        elif read not in twins:  # a number, which the image size decides
            twins[read] = known[read.name]
    for fx_node in region:
        twins[fx_node] = inner.node_copy(fx_node, twins.__getitem__)
    outputs = [one for one in region if any(user not in members for user in one.users)]
    # both branches need the same strides, also along axes of one element
    layout: dict[str, Any] = {"memory_format": torch.contiguous_format}
    inner.output(tuple(inner.call_method("clone", (twins[one],), layout) for one in outputs))
    shapes = [known[one.name] for one in outputs]
    added[name] = RunOrSkip(module_of(lowered, inner), shapes)
    call = graph.create_node("call_module", name, (runs, *inputs), {})
    for place, output in enumerate(outputs):
        part = graph.call_function(getitem, (call, place))
        known[part.name] = known[output.name]
        output.replace_all_uses_with(part, delete_user_cb=lambda user: user not in members)
    for fx_node in reversed(region):
        graph.erase_node(fx_node)


def _is_tensor(known: Any) -> bool:
    return isinstance(known, tuple) and len(known) == 2 and isinstance(known[0], torch.Size)
