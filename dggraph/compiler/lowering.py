"""Lower a wired graph into one flat `fx.GraphModule`: ops stay where they are, only the inputs of blocks are rewired.

In front of block j, the pass puts, in this order:
1. `share`, node j-1 as later nodes read it; its router and gate (with a `stage` router: once, at the stage's entry), its adjacency row;
2. `column`, the weights of the edges into j; `open_edges`, what is left of them after the threshold and dead sources;
3. `aggregate` (or `concatenate`), the block's new input, and `is_live`.
`out` is the same without a block, and `open_output` sees that something reaches it. The module returns the backbone's output and,
per stage, the edge weights after and before the threshold, in the graph's edge order.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from dggraph.compiler.discovery import FoundStage
from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.residuals import branch, identity_adds
from dggraph.errors import LoweringError
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.aggregation import adapt, aggregate, concatenate, share, stage_cache
from dggraph.ops.gating import column, is_live, open_edges, open_output
from dggraph.ops.routing import Router


class LoweredModule(fx.GraphModule):
    """A GraphModule that owns the backbone's module tree as it was, used or not: original state-dict keys stand."""

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str = "LoweredModule") -> None:
        super().__init__(root, graph, class_name)
        _adopt(self, root)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LoweredModule":
        root = nn.Module()
        _adopt(root, copy.deepcopy(_owned(self), memo))
        twin = LoweredModule(root, copy.deepcopy(self.graph))
        twin.training = self.training
        return twin

    def __reduce__(self) -> Any:
        raise LoweringError(
            "a lowered network is never pickled: torch regenerates its code on loading and may change in-place ops "
            "(pytorch #198077). Use dggraph.save(net, folder), or its state_dict()."
        )


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
    """What a sparse executor needs to run one block on some rows of the batch; fx names are those of the lowered graph."""

    node: str
    input: str
    output: str
    fx_nodes: tuple[str, ...]
    reads: tuple[Read, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage as it stands in the lowered graph, by fx names."""

    name: str
    entry: str
    output: str
    weights: str
    raw: str
    own: tuple[str, ...]
    """Every fx node that lowering wrote for the stage: routers, gates, aggregation."""
    blocks: tuple[BlockPlan, ...]
    dense_only: str
    """Why the stage's blocks cannot run on some rows of the batch; empty where they can."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered network and how its blocks can run alone."""

    module: LoweredModule
    plan: tuple[StagePlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciders:
    """How edges are decided: a router kind with its factory, a gate factory and the threshold."""

    scope: str
    """`node` or `stage`."""
    router: Router
    gate: Callable[[Sequence[bool]], nn.Module]
    threshold: float


def lower(flow: Flow, found: Sequence[FoundStage], graph: DynamicGraph, deciders: Deciders) -> Lowered:
    """Rewire the backbone behind `flow` into `graph`. The backbone's modules are shared with the result, not copied.

    Args:
        flow: the traced backbone.
        found: its stages, in the order of `graph.stages`.
        graph: the wired graph.
        deciders: routers, gates and threshold.

    Raises:
        LoweringError: the backbone already has an attribute that a stage's routers need.
    """
    source_graph = next(iter(flow.order)).graph
    lowered = copy.deepcopy(source_graph)
    root = nn.Module()
    _adopt(root, flow.module)
    by_name = {fx_node.name: fx_node for fx_node in lowered.nodes}
    with lowered.inserting_after(next(n for n in lowered.nodes if n.op == "placeholder")):
        training = lowered.create_node("get_attr", "training", name="dg_training")
    gates: dict[str, Any] = {}
    plan: list[StagePlan] = []
    for name, stage in zip(graph.stages, found, strict=True):
        owner = f"dg_{name}"
        if hasattr(root, owner):
            raise LoweringError(f"the backbone already has an attribute {owner!r}; rename it, routers are kept there.")
        root.add_module(owner, nn.Module())
        writer = _StageWriter(flow, lowered, by_name, stage, graph, name, deciders, root.get_submodule(owner), training)
        plan.append(writer.write())
        gates[name] = (by_name[plan[-1].weights], by_name[plan[-1].raw])
    output = next(iter(reversed(lowered.nodes)))
    output.args, output.type = ((output.args[0], gates),), None
    return Lowered(LoweredModule(root, lowered), tuple(plan))


class _StageWriter:
    """Writes one stage. Holds what grows as the pass walks the vertices: values, rows, columns, live flags."""

    def __init__(
        self,
        flow: Flow,
        lowered: fx.Graph,
        by_name: dict[str, fx.Node],
        stage: FoundStage,
        graph: DynamicGraph,
        name: str,
        deciders: Deciders,
        owner: nn.Module,
        training: fx.Node,
    ) -> None:
        self.flow, self.lowered, self.by_name, self.stage = flow, lowered, by_name, stage
        self.graph, self.name, self.deciders, self.owner, self.training = graph, name, deciders, owner, training
        self.vertices = graph.nodes(name)
        self.values = [by_name[stage.entry]]
        self.shared: list[fx.Node] = []
        self.rows: list[fx.Node] = []
        self.live: list[fx.Node | None] = [None]
        self.raw: list[fx.Node] = []
        self.weights: list[fx.Node] = []
        self.blocks: list[BlockPlan] = []
        self.own: list[fx.Node] = []
        owner.register_buffer("threshold", torch.tensor(float(deciders.threshold)))

    def write(self) -> StagePlan:
        """Rewire the stage; returns where everything is."""
        is_lifted = self.graph.stages[self.name].residual == "lift"
        spent: list[fx.Node] = []
        for index, block in enumerate(self.stage.blocks, start=1):
            inside = [self.by_name[name] for name in block.fx_nodes]
            source = self.by_name[block.input]
            first = next(fx_node for fx_node in inside if source in fx_node.all_input_nodes)
            adds = identity_adds(self.flow, block) if is_lifted else ()
            if index == 1:
                with self.lowered.inserting_before(first):
                    self.threshold = self._node("get_attr", f"dg_{self.name}.threshold", (), "threshold")
                    self.cache = self._call(stage_cache, (), "cache")
            with self.lowered.inserting_before(first):
                new_input = self._write_vertex(index)
            for fx_node in inside:
                fx_node.replace_input_with(source, new_input)
            self.values.append(self._lift(adds, block, spent) if adds else self.by_name[block.output])
            self.blocks.append(self._plan(block, new_input, index))
        last = self.by_name[self.stage.output]
        inside_stage = {name for block in self.stage.blocks for name in block.fx_nodes}
        outside = [user for user in last.users if user.name not in inside_stage and not user.name.startswith("dg_")]
        with self.lowered.inserting_after(last):
            anchor = self.lowered.create_node("get_attr", "training", name=f"dg_{self.name}_end")
        with self.lowered.inserting_before(anchor):
            new_output = self._write_vertex(len(self.vertices) - 1)
            weights = self._call(torch.cat, (self.weights, 1), "weights")
            raw = self._call(torch.cat, (self.raw, 1), "raw")
        self.lowered.erase_node(anchor)
        for user in outside:
            user.replace_input_with(last, new_output)
        self._erase([*spent, last])
        self.by_name[self.stage.output] = new_output
        self.by_name |= {weights.name: weights, raw.name: raw}
        return StagePlan(
            name=self.name,
            entry=self.values[0].name,
            output=new_output.name,
            weights=weights.name,
            raw=raw.name,
            own=tuple(fx_node.name for fx_node in self.own if fx_node is not anchor),
            blocks=tuple(self.blocks),
            dense_only=self._why_dense(),
        )

    def _why_dense(self) -> str:
        for block in self.blocks:
            for read in block.reads:
                if read.kind == "unknown":
                    return f"{block.node} reads {read.fx_node}, a number computed outside it"
        for value in self.values[1:]:
            inside = {*self.own, *(self.by_name.get(name) for block in self.blocks for name in block.fx_nodes)}
            for user in value.users:
                if user not in inside:
                    return f"{user.name} reads {value.name}, a node's output, from outside the stage"
        return ""

    def _write_vertex(self, index: int) -> fx.Node:
        """Router, gate, column, threshold and aggregation in front of vertex `index`; returns its new input."""
        vertex = self.vertices[index]
        incoming = self.graph.incoming(vertex.name)
        sources = [next(i for i, node in enumerate(self.vertices) if node.name == edge.source) for edge in incoming]
        self.shared.append(self._call(share, (self.values[-1], self.cache, index - 1), f"shared_{index - 1}"))
        self._write_row(index - 1)
        raw = self._call(column, (self.rows, tuple(self._pick(edge) for edge in incoming)), f"raw_{index}")
        live = [self.live[source] for source in sources]
        weights = self._call(open_edges, (raw, live, self.threshold, self.training), f"weights_{index}")
        if vertex.kind == "out":
            weights = self._call(open_output, (weights, raw, live, self.training), f"weights_{index}_open")
        else:
            self.live.append(self._call(is_live, (weights,), f"live_{index}"))
        self.raw.append(raw)
        self.weights.append(weights)
        axis = self.stage.channel_axis
        wanted = self.vertices[index - 1].shape[0 if axis == 1 else -1]
        features = [
            self._call(adapt, (self.shared[source], wanted, axis), f"adapted_{source}_{index}")
            if edge.kind == "adapter"
            else self.shared[source]
            for source, edge in zip(sources, incoming, strict=True)
        ]
        if incoming[0].kind == "concat":
            return self._call(concatenate, (features, weights, axis), f"input_{index}")
        marks = tuple(None if edge.kind == "adapter" else source for source, edge in zip(sources, incoming, strict=True))
        return self._call(aggregate, (features, weights, self.cache, marks, index), f"input_{index}")

    def _write_row(self, index: int) -> None:
        """The adjacency row of vertex `index`, or all rows at once from the entry."""
        is_stage_wide = self.deciders.scope == "stage"
        if is_stage_wide and index > 0:
            return
        edges = self.graph.edges(self.name) if is_stage_wide else self.graph.outgoing(self.vertices[index].name)
        axis = self.stage.channel_axis
        num_channels = self.vertices[index].shape[0 if axis == 1 else -1]
        self.owner.add_module(f"router_{index}", self.deciders.router(num_channels, len(edges), axis))
        self.owner.add_module(f"gate_{index}", self.deciders.gate([edge.is_static for edge in edges]))
        logits = self._node("call_module", f"dg_{self.name}.router_{index}", (self.shared[index],), f"logits_{index}")
        self.rows.append(self._node("call_module", f"dg_{self.name}.gate_{index}", (logits,), f"row_{index}"))

    def _pick(self, edge: Any) -> tuple[int, int]:
        """Where the weight of `edge` is: which row, which place in it."""
        if self.deciders.scope == "stage":
            return 0, self.graph.edges(self.name).index(edge)
        row = next(i for i, node in enumerate(self.vertices) if node.name == edge.source)
        return row, self.graph.outgoing(edge.source).index(edge)

    def _lift(self, adds: tuple[fx.Node, ...], block: Region, spent: list[fx.Node]) -> fx.Node:
        """F alone: the sum of the block's branches. Its last add is left without readers and goes to `spent`."""
        lines = [self.flow.by_name[block.input], *adds]
        branches = [self.by_name[branch(add, line).name] for add, line in zip(adds, lines, strict=False)]
        last = self.by_name[block.output]
        spent.append(last)
        total = branches[0]
        with self.lowered.inserting_before(last):
            for number, term in enumerate(branches[1:], start=1):
                total = self._call(torch.add, (total, term), f"branches_{last.name}_{number}")
        return total

    def _plan(self, block: Region, new_input: fx.Node, index: int) -> BlockPlan:
        inside = [self.by_name[name] for name in block.fx_nodes]
        reads: dict[str, Read] = {}
        for fx_node in inside:
            for read in fx_node.all_input_nodes:
                if read in inside or read is new_input:
                    continue
                reads[read.name] = Read(read.name, self._kind_of(read))
        return BlockPlan(
            node=self.vertices[index].name,
            input=new_input.name,
            output=self.values[index].name,
            fx_nodes=tuple(fx_node.name for fx_node in inside),
            reads=tuple(reads.values()),
        )

    def _kind_of(self, read: fx.Node) -> ReadKind:
        original = self.flow.by_name.get(read.name)
        if read.op == "get_attr":
            return "constant"
        if original is None or original in self.flow.activations:
            return "batched"
        if read.name in self.flow.profile.shapes:
            return "constant"
        return _size_kind(read)

    def _erase(self, candidates: Sequence[fx.Node]) -> None:
        """Remove what lost its last reader: the adds of lifted blocks, the concats of growth stages."""
        open_ends = [*candidates, *(self.by_name[block.input] for block in reversed(self.stage.blocks))]
        for fx_node in dict.fromkeys(open_ends):
            is_rest = fx_node.op == "call_function" and fx_node.target in (torch.cat, torch.concat)
            if not fx_node.users and (is_rest or fx_node in candidates) and fx_node.op != "placeholder":
                self.lowered.erase_node(fx_node)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], name: str) -> fx.Node:
        return self._node("call_function", function, args, name)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], name: str) -> fx.Node:
        self.own.append(self.lowered.create_node(op, target, args, {}, name=f"dg_{self.name}_{name}"))
        return self.own[-1]


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


def _owned(module: nn.Module) -> nn.Module:
    """A plain module that owns what `module` owns."""
    owner = nn.Module()
    _adopt(owner, module)
    return owner


def _adopt(owner: nn.Module, module: nn.Module) -> None:
    """Make `owner` hold the children, parameters and buffers of `module`, shared and under the same names."""
    owner.__dict__["_modules"] = dict(module._modules)
    owner.__dict__["_parameters"] = dict(module._parameters)
    owner.__dict__["_buffers"] = dict(module._buffers)
    owner.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            owner.__dict__[name] = value
    owner.training = module.training
