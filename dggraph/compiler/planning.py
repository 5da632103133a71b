"""The plan: what an executor must know to run a stage's blocks alone, on some rows of the batch. All by fx names of the lowered graph."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx

from dggraph.compiler.aliasing import may_overwrite
from dggraph.compiler.regions import Flow

ReadKind = Literal["constant", "rows", "batched", "unknown"]


@dataclass(frozen=True, slots=True)
class Read:
    """A value that a block reads from outside besides its input."""

    fx_node: str
    kind: ReadKind
    """`constant`: the same for every batch. `rows`: the batch size. `batched`: rows to gather with the block's own. `unknown`: a
    number that may depend on the batch size in another way; such a block runs on whole batches only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """One block."""

    node: str
    """Its name in the `DynamicGraph`."""
    input: str
    output: str
    fx_nodes: tuple[str, ...]
    reads: tuple[Read, ...]
    writes_input: bool
    """True where an op may overwrite the block's input, so that it needs one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage as it stands in the lowered graph."""

    name: str
    scope: str
    """`node` or `stage`: where its routers stand."""
    entry: str
    output: str
    weights: str
    raw: str
    own: tuple[str, ...]
    """Every fx node that lowering wrote for the stage: routers, gates, aggregation."""
    blocks: tuple[BlockPlan, ...]
    writes_output: bool
    """True where what follows the stage may overwrite its output."""
    dense_only: str
    """Why the stage's blocks cannot run on some rows of the batch; empty where they can."""


def plan_block(flow: Flow, node: str, inside: Sequence[fx.Node], new_input: fx.Node, output: fx.Node) -> BlockPlan:
    """The plan of one block of the lowered graph, `inside` being its fx nodes."""
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


def why_dense(flow: Flow, blocks: Sequence[BlockPlan], values: Sequence[fx.Node], own: Sequence[fx.Node]) -> str:
    """Why a stage cannot run on some rows of the batch; empty where it can. `values` are what v0 .. vN hand on."""
    for block in blocks:
        for read in block.reads:
            if read.kind == "unknown":
                return f"{block.node} reads {read.fx_node}, a number computed outside it"
    inside = {fx_node.name for fx_node in own}.union(*(block.fx_nodes for block in blocks))
    for value in values[1:]:
        for user in value.users:
            if user.name not in inside:
                return f"{user.name} reads {value.name}, a node's output, from outside the stage"
    if may_overwrite(flow, values[0], apart_from=inside):
        return f"something outside the stage may overwrite its input {values[0].name}"
    return ""


def _kind_of(flow: Flow, read: fx.Node) -> ReadKind:
    original = flow.by_name.get(read.name)
    if read.op == "get_attr":
        return "constant"
    if original is None or original in flow.activations:
        return "batched"
    if read.name in flow.profile.shapes:
        return "constant"
    return _size_kind(read)


def _size_kind(fx_node: fx.Node) -> ReadKind:
    """What a number computed from shapes says of the batch: nothing (`constant`), its size (`rows`), or who knows."""
    is_size = fx_node.op == "call_method" and fx_node.target == "size"
    axis: Any = fx_node.args[1] if is_size and len(fx_node.args) == 2 else None
    if fx_node.op == "call_function" and fx_node.target is operator.getitem and _is_shape(fx_node.args[0]):
        axis = fx_node.args[1]
    if isinstance(axis, int):
        return "rows" if axis == 0 else "constant" if axis > 0 or axis == -1 else "unknown"
    if fx_node.op == "call_function" and fx_node.all_input_nodes and fx_node.target is not getattr:
        return "constant" if all(_size_kind(source) == "constant" for source in fx_node.all_input_nodes) else "unknown"
    return "unknown"


def _is_shape(value: Any) -> bool:
    if not isinstance(value, fx.Node):
        return False
    by_method = value.op == "call_method" and value.target == "size" and len(value.args) == 1
    return by_method or (value.op == "call_function" and value.target is getattr and str(value.args[1]) == "shape")
