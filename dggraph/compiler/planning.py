"""The plan for running a stage's blocks on their own, on some rows of the batch.

All values are named by the fx names of the lowered graph.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import fx, nn

# Private, torch 2.10 to 2.15: the base class of all batch norms.
from torch.nn.modules.batchnorm import _BatchNorm

from dggraph.compiler.aliasing import may_overwrite, outlasts
from dggraph.compiler.profiling import TRACED_BATCH
from dggraph.compiler.regions import Flow
from dggraph.ops.granularity import Granularity

EFFECT, NEEDED = "dg_effect", "dg_needed"
"""Keys of an fx node's `meta`.

`EFFECT`: it must run even if nothing reads its value. `NEEDED`: it leads to the output or to such a
node.
"""

Aggregation = Literal["sum", "additive"]
"""How a node reads its sources: their weighted sum, or as in `ops/additive`."""

ReadKind = Literal["constant", "rows", "batched", "unknown"]


@dataclass(frozen=True, slots=True)
class Read:
    """A value, other than its input, that a block reads from outside."""

    fx_node: str
    kind: ReadKind
    """How the value depends on the batch.

    `constant`: it is the same for every batch. `rows`: it is the batch size. `batched`: it has rows
    to gather with the block's own. `unknown`: it may depend on the batch size in another way; a
    block that reads it only runs on whole batches.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """One block in the lowered graph."""

    node: str
    """Name of its node in the `DynamicGraph`."""
    input: str
    output: str
    fx_nodes: tuple[str, ...]
    reads: tuple[Read, ...]
    writes_input: bool
    """Whether an op may overwrite the block's input, so that the block needs a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage in the lowered graph."""

    name: str
    scope: str
    """The place of its routers: `node`, `stage` or `column`."""
    shrinks: bool
    """Whether open edges add with what their weight has above the threshold."""
    entry: str
    output: str
    gates: tuple[str, ...]
    """The edge weights after and before the threshold, and all parts of edges that have several."""
    granularity: Granularity
    aggregation: Aggregation
    own: tuple[str, ...]
    """Every fx node that lowering wrote for the stage: routers, gates and aggregation."""
    blocks: tuple[BlockPlan, ...]
    writes_output: bool
    """Whether an op after the stage may overwrite its output."""
    dense_only: str
    """Why the stage's blocks cannot run on some rows of the batch; empty if they can."""


def plan_block(
    flow: Flow, node: str, inside: Sequence[fx.Node], new_input: fx.Node, output: fx.Node
) -> BlockPlan:
    """Return the plan of one block of the lowered graph, whose fx nodes are `inside`."""
    members = set(inside)
    reads = {
        read.name: Read(read.name, _kind_of(flow, read))
        for fx_node in inside
        for read in fx_node.all_input_nodes
        if read not in members and read is not new_input
    }
    return BlockPlan(
        node=node,
        input=new_input.name,
        output=output.name,
        fx_nodes=tuple(fx_node.name for fx_node in inside),
        reads=tuple(reads.values()),
        writes_input=may_overwrite(flow, new_input),
    )


def why_dense(
    flow: Flow, blocks: Sequence[BlockPlan], values: Sequence[fx.Node], own: Sequence[fx.Node]
) -> str:
    """Return why a stage cannot run on some rows of the batch; empty if it can.

    `values` are the outputs of v0 to vN.
    """
    for block in blocks:
        for read in block.reads:
            if read.kind == "unknown":
                return (
                    f"{block.node} reads {read.fx_node}, which is computed outside this block and"
                    " may depend on the batch size"
                )
        for name in block.fx_nodes:
            fx_node = flow.by_name.get(name)
            if fx_node is None:
                continue
            if fx_node.op == "call_module":
                for path in batch_norms(flow.module, str(fx_node.target)):
                    if flow.module.get_submodule(path).running_mean is None:
                        return f"{block.node} uses the batch's own statistics, in {path}"
            if outlasts(flow, fx_node):
                return f"{block.node} changes state that outlasts a forward pass, at {name}"
    inside = {fx_node.name for fx_node in own}.union(*(block.fx_nodes for block in blocks))
    if may_overwrite(flow, values[0], apart_from=inside):
        return f"something outside the stage may overwrite its input {values[0].name}"
    return ""


def batch_norms(root: nn.Module, path: str) -> list[str]:
    """Return the paths of the batch norms in the module at `path`, which may be one itself.

    Returns an empty list if the path does not lead to a module.
    """
    try:
        module = root.get_submodule(path)
    except AttributeError:  # a weight
        return []
    found = [name for name, inner in module.named_modules() if isinstance(inner, _BatchNorm)]
    return [f"{path}.{name}" if name else path for name in found]


def uses_batch_statistics(lowered: nn.Module, norms: Sequence[Sequence[str]]) -> bool:
    """Whether a norm among `norms` (paths, split at dots) would use statistics of other images.

    True if it is in training mode, or keeps no statistics.
    """
    for path in norms:
        module: nn.Module | None = lowered
        for name in path:
            module = None if module is None else module._modules.get(name)
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return True
    return False


def dense_where_read(graph: fx.Graph, stage: StagePlan) -> StagePlan:
    """Return `stage`, set to run dense if a needed op outside reads a value inside its blocks."""
    handed_on = {stage.output, *stage.gates}
    inside = {*stage.own}.union(*(block.fx_nodes for block in stage.blocks))
    for fx_node in graph.nodes:
        if fx_node.name in inside and fx_node.name not in handed_on and fx_node.op != "get_attr":
            for user in fx_node.users:
                if user.name not in inside and NEEDED in user.meta:
                    return replace(
                        stage,
                        dense_only=(
                            f"{user.name}, outside the stage, reads {fx_node.name}, a value inside"
                            " it"
                        ),
                    )
    return stage


def mark_needed(graph: fx.Graph) -> None:
    """Mark every op whose value reaches the output or an op with an effect."""
    for fx_node in reversed(graph.nodes):
        if (
            fx_node.op in ("output", "placeholder")
            or EFFECT in fx_node.meta
            or any(NEEDED in user.meta for user in fx_node.users)
        ):
            fx_node.meta[NEEDED] = True
        else:
            fx_node.meta.pop(NEEDED, None)


def _kind_of(flow: Flow, read: fx.Node) -> ReadKind:
    original = flow.by_name.get(read.name)
    if read.op == "get_attr":
        return "constant"
    if original is None or original in flow.activations:
        return "batched"
    if read.name not in flow.profile.shapes:
        return _size_kind(read)
    if not _varies(flow, original):
        return "constant"
    return "batched" if flow.profile.shapes[read.name][:1] == (TRACED_BATCH,) else "unknown"


def _varies(flow: Flow, fx_node: fx.Node) -> bool:
    """Whether a value computed without the images may depend on their number."""
    if fx_node.name in flow.profile.shapes:
        return any(
            _varies(flow, source)
            for source in fx_node.all_input_nodes
            if source not in flow.activations
        )
    return fx_node.op != "get_attr" and _size_kind(fx_node) != "constant"


def _size_kind(fx_node: fx.Node) -> ReadKind:
    """Return how a number computed from shapes depends on the batch.

    `constant`: not at all; `rows`: it is the batch size; `unknown`: this cannot be determined.
    """
    is_size = fx_node.op == "call_method" and fx_node.target == "size"
    axis: Any = fx_node.args[1] if is_size and len(fx_node.args) == 2 else None
    if (
        fx_node.op == "call_function"
        and fx_node.target is operator.getitem
        and _is_shape(fx_node.args[0])
    ):
        axis = fx_node.args[1]
    if isinstance(axis, int):
        return "rows" if axis == 0 else "constant" if axis > 0 or axis == -1 else "unknown"
    if fx_node.op == "call_function" and fx_node.all_input_nodes and fx_node.target is not getattr:
        return (
            "constant"
            if all(_size_kind(source) == "constant" for source in fx_node.all_input_nodes)
            else "unknown"
        )
    return "unknown"


def _is_shape(value: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    by_method = value.op == "call_method" and value.target == "size" and len(value.args) == 1
    return by_method or (
        value.op == "call_function" and value.target is getattr and str(value.args[1]) == "shape"
    )
