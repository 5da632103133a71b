"""Write one stage into the lowered graph: ops keep their order, and the inputs of blocks change.

In front of block j, the writer inserts, in this order:
1. `share`, the value of node j-1 for later nodes; with `node` routers also its router and gate,
   which return its adjacency row;
2. `weigh`, this row after the threshold and without a dead node's edges; `column`, the weights of
   the edges into j; `is_live`;
3. `aggregate` (or `concatenate`), the block's new input.

Edges with several weights (`ops/granularity`) are decided by their largest one. `settle_parts` then
closes the parts of closed edges, and aggregation reads the parts.

`out` is the same without a block, and `open_output` ensures that at least one edge reaches it. A
`stage` router decides all edges at the stage's entry, so a single `settle` replaces step 2.

Weights of edges that `aggregate` reads as they are get their gradients in `weigh` or `collect`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from dggraph.compiler.aliasing import may_overwrite, writers
from dggraph.compiler.calls import mark_lifted, mark_routing
from dggraph.compiler.lowered import StageRouting, routing_name
from dggraph.compiler.planning import Aggregation, BlockPlan, StagePlan, plan_block, why_dense
from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.residuals import StageAdds, branch
from dggraph.compiler.stages import FoundStage
from dggraph.errors import WiringError
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.additive import Gain, add_normed
from dggraph.ops.aggregation import adapt, aggregate, concatenate, share
from dggraph.ops.collecting import collect, weigh
from dggraph.ops.content_router import content_logits, of_live
from dggraph.ops.gating import GateKind, column, shrink
from dggraph.ops.granularity import Granularity, Parts, largest, settle_parts, shrink_parts
from dggraph.ops.liveness import Topology, is_live, live_sources, open_edges, open_output, settle
from dggraph.ops.stage_cache import stage_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciders:
    """How edges are decided: a router kind with its factory, a gate and the threshold."""

    scope: str
    """The place of the routers: `node`, `stage` or `column`, see `routing.ROUTERS`."""
    router: Callable[..., nn.Module]
    """See `routing.Router`."""
    is_tied: bool = False
    """Whether all edges out of one node share their logits."""
    gate: GateKind
    threshold: float
    granularity: Granularity = "edge"
    aggregation: Aggregation = "sum"


class StageWriter:
    """Writes one stage.

    Its values, rows, columns and live flags grow as it visits the vertices.
    """

    def __init__(
        self,
        flow: Flow,
        lowered: fx.Graph,
        by_name: dict[str, fx.Node],
        stage: FoundStage,
        adds: StageAdds,
        graph: DynamicGraph,
        name: str,
        deciders: Deciders,
        routing: StageRouting,
        training: fx.Node,
    ) -> None:
        self.flow, self.lowered, self.by_name, self.stage = flow, lowered, by_name, stage
        self.adds, self.graph, self.name, self.deciders, self.routing, self.training = (
            adds,
            graph,
            name,
            deciders,
            routing,
            training,
        )
        self.vertices, self.channel_position = (
            graph.nodes(name),
            graph.stages[name].channel_position,
        )
        self.topology = stage_topology(graph, name)
        self.granularity = stage_granularity(graph, name, deciders.granularity)
        self.has_parts = self.granularity != "edge"
        self.aggregation = stage_aggregation(graph, name, deciders.aggregation)
        self.values = [by_name[stage.entry]]
        self.shared: list[fx.Node] = []
        self.rows: list[fx.Node] = []
        """What gates return."""
        self.peaks: list[fx.Node] = []
        """One weight an edge; the rows themselves where edges have one."""
        self.parts: list[fx.Node] = []
        self.reads: list[fx.Node] = []
        """What `column` routers give, see `content_router`."""
        self.live: list[fx.Node | None] = [None]
        shrinks_rows = deciders.gate.shrinks and deciders.scope == "node"
        self.collects = (
            deciders.scope != "column"
            and not shrinks_rows
            and not self.has_parts
            and self.aggregation == "sum"
            and all(edge.kind == "add" for edge in graph.edges(name))
        )
        """Whether `weigh` or `collect` computes the gradients of all edge weights."""
        self.decided: list[fx.Node] = []
        self.weights: list[fx.Node] = []
        self.blocks: list[BlockPlan] = []
        self.own: list[fx.Node] = []
        self.prefix = name

    def write(self) -> StagePlan:
        """Rewire the stage, and return the plan that names its fx nodes."""
        is_lifted = self.graph.stages[self.name].residual == "lift"
        spent: list[fx.Node] = []
        for index, block in enumerate(self.stage.blocks, start=1):
            inside = [self.by_name[name] for name in block.fx_nodes]
            source = self.by_name[block.input]
            first = next(fx_node for fx_node in inside if source in fx_node.all_input_nodes)
            adds = self.adds[index - 1] if is_lifted else ()
            if index == 1:
                with self.lowered.inserting_before(first):
                    self.threshold = self._node(
                        "get_attr", f"{routing_name(self.name)}.threshold", (), "threshold"
                    )
                    self.cache = self._call(stage_cache, (), "cache")
            with self.lowered.inserting_before(first):
                new_input = self._write_vertex(index)
            for fx_node in inside:
                fx_node.replace_input_with(source, new_input)
            output = self.by_name[block.output]
            if adds:
                terms = self._lift(adds, block)
                spent.append(output)
                inside, output = (
                    [*(fx_node for fx_node in inside if fx_node is not output), *terms[1:]],
                    terms[-1],
                )
            self.values.append(output)
            self.blocks.append(
                plan_block(self.flow, self.vertices[index].name, inside, new_input, output)
            )
        last = self.by_name[self.stage.output]
        inside_stage = {name for block in self.stage.blocks for name in block.fx_nodes}
        outside = [
            user
            for user in last.users
            if user.name in self.flow.by_name and user.name not in inside_stage
        ]
        own = set(self.stage.blocks[-1].fx_nodes)
        late = [
            fx_node.name
            for fx_node in writers(self.flow, self.flow.by_name[self.stage.output])
            if fx_node.name in own
        ]
        finished = (
            self.by_name[max(late, key=lambda name: self.flow.order[self.flow.by_name[name]])]
            if late
            else last
        )
        # After a last line like `y[mask] = z`: only then does y have its final value.
        with self.lowered.inserting_after(finished):
            anchor = self.lowered.create_node("get_attr", "training", name=f"{self.prefix}_end")
        with self.lowered.inserting_before(anchor):
            new_output = self._write_vertex(len(self.vertices) - 1)
            if self.deciders.scope == "column":
                weights = self._call(torch.cat, (self.weights, 1), "weights")
                raw = self._call(torch.cat, (self.peaks, 1), "raw")
            elif self.deciders.scope == "node":
                weights = self._call(torch.cat, (self.weights, 1), "weights")
                picks = [
                    pick for index in range(1, len(self.vertices)) for pick in self._picks(index)
                ]
                raw = self._call(column, (self.peaks, tuple(picks)), "raw")
            else:
                weights, raw = self.settled, self.peaks[0]
            parts = self.parts[:1]
            if len(self.parts) > 1:
                parts = [self._call(torch.cat, (self.parts, 1), "parts")]
        self.lowered.erase_node(anchor)
        for user in outside:
            user.replace_input_with(last, new_output)
        blocks = [{self.by_name[name] for name in block.fx_nodes} for block in self.stage.blocks]
        mark_routing(self.own, blocks, self.stage.blocks[0].path, self.lowered)
        self._erase([*spent, last])
        self.by_name[self.stage.output] = new_output
        gates = (weights, raw, *parts)
        self.by_name |= {gate.name: gate for gate in gates}
        return StagePlan(
            name=self.name,
            scope=self.deciders.scope,
            shrinks=self.deciders.gate.shrinks,
            entry=self.values[0].name,
            output=new_output.name,
            gates=tuple(gate.name for gate in gates),
            granularity=self.granularity,
            aggregation=self.aggregation,
            own=tuple(fx_node.name for fx_node in self.own),
            blocks=tuple(self.blocks),
            writes_output=may_overwrite(self.flow, new_output),
            dense_only=why_dense(self.flow, self.blocks, self.values, self.own),
        )

    def _write_vertex(self, index: int) -> fx.Node:
        """Write the ops in front of vertex `index`, and return its new input."""
        incoming = self.graph.incoming(self.vertices[index].name)
        sources = self.topology.sources[self.topology.incoming(index)]
        self.shared.append(
            self._call(share, (self.values[-1], self.cache, index - 1), f"x{index - 1}")
        )
        write = {
            "node": self._write_weights,
            "column": self._write_column,
            "stage": self._take_weights,
        }
        weights = write[self.deciders.scope](index, sources)
        axis = self.stage.channel_axis
        wanted = self.vertices[index - 1].shape[self.channel_position]
        features = [
            (
                self._call(adapt, (self.shared[source], wanted, axis), f"x{source}_for_{index}")
                if edge.kind == "adapter"
                else self.shared[source]
            )
            for source, edge in zip(sources, incoming, strict=True)
        ]
        if incoming[0].kind == "concat":
            return self._call(concatenate, (features, weights, axis), f"in{index}")
        marks = tuple(
            None if edge.kind == "adapter" else source
            for source, edge in zip(sources, incoming, strict=True)
        )
        if self.aggregation == "additive":
            self.routing.add_module(f"sum_{index}", Gain())
            path = f"{routing_name(self.name)}.sum_{index}.gain"
            gain = self._node("get_attr", path, (), f"gain{index}")
            return self._call(add_normed, (features, weights, gain, axis), f"in{index}")
        given: tuple[Any, ...] = (features, weights, self.cache, marks, index)
        if self.collects and self.deciders.scope == "stage":
            given = (*given, [self.settled])
        elif self.collects:
            given = (*given, [self.decided[source] for source in sources])
        return self._call(aggregate, given, f"in{index}")

    def _write_weights(self, index: int, sources: Sequence[int]) -> fx.Node:
        """Write the row of the vertex before, then the column of this one (`node` routers)."""
        source = index - 1
        outgoing = self.topology.outgoing()[source]
        self._write_row(source, outgoing)
        targets = tuple(self.topology.targets[edge] for edge in outgoing)
        how = (self.threshold, self.training, self.cache if self.collects else None)
        row = (self.peaks[-1], self.live[-1], *how, source, targets)
        self.decided.append(self._call(weigh, row, f"w{source}"))
        picks = self._picks(index)
        weights = self._call(column, (self.decided, picks), f"a{index}")
        if index == len(self.vertices) - 1:
            raw = self._call(column, (self.peaks, picks), f"raw{index}")
            live = [self.live[source] for source in sources]
            weights = self._call(
                open_output, (weights, raw, live, self.training), f"reached{index}"
            )
        else:
            self.live.append(self._call(is_live, (weights,), f"live{index}"))
        settled = weights
        if self.deciders.gate.shrinks:
            weights = self._call(shrink, (weights, self.threshold), f"shrunk{index}")
        self.weights.append(weights)
        if not self.has_parts:
            return weights
        rows = self._call(column, (self.rows, picks), f"rows{index}")
        raw = self._call(column, (self.peaks, picks), f"peaks{index}")
        self._write_parts(rows, raw, settled, [self.live[source] for source in sources])
        return self.parts[-1]

    def _write_parts(self, rows: fx.Node, raw: fx.Node, settled: fx.Node, live: Any) -> None:
        """Write the parts of edges that are open by `settled`, as aggregation reads them."""
        given = (rows, raw, settled, live, self.threshold, self.training)
        number = str(len(self.parts) + 1) if self.deciders.scope == "node" else ""
        parts = self._call(settle_parts, given, f"parts{number}")
        if self.deciders.gate.shrinks:
            parts = self._call(shrink_parts, (parts, self.threshold), f"shrunk_parts{number}")
        self.parts.append(parts)

    def _picks(self, index: int) -> tuple[tuple[int, int], ...]:
        """Return, for each edge into vertex `index`, its source and its place in that row."""
        outgoing = self.topology.outgoing()
        place = self.topology.incoming(index)
        edges = range(place.start, place.stop)
        sources = [self.topology.sources[edge] for edge in edges]
        return tuple(
            (source, outgoing[source].index(edge))
            for edge, source in zip(edges, sources, strict=True)
        )

    def _write_column(self, index: int, sources: Sequence[int]) -> fx.Node:
        """Write what the vertex before asks and answers, then the column of this one."""
        source, place = index - 1, self.topology.incoming(index)
        self._add_deciders(source, range(place.start, place.stop))
        read = self._node(
            "call_module",
            f"{routing_name(self.name)}.router_{source}",
            (self.shared[source],),
            f"read{source}",
        )
        self.reads.append(self._call(of_live, (read, self.live[source]), f"answer{source}"))
        width = self.routing.router(source).width
        answers = [self.reads[one] for one in sources]
        logits = self._call(content_logits, (answers, self.reads[-1], width), f"logits{index}")
        gate = f"{routing_name(self.name)}.gate_{source}"
        raw = self._node("call_module", gate, (logits,), f"raw{index}")
        self.peaks.append(raw)
        live = [self.live[one] for one in sources]
        weights = self._call(open_edges, (raw, live, self.threshold, self.training), f"a{index}")
        if index == len(self.vertices) - 1:
            reached = (weights, raw, live, self.training)
            weights = self._call(open_output, reached, f"reached{index}")
        else:
            self.live.append(self._call(is_live, (weights,), f"live{index}"))
        if self.deciders.gate.shrinks:
            weights = self._call(shrink, (weights, self.threshold), f"shrunk{index}")
        self.weights.append(weights)
        return weights

    def _take_weights(self, index: int, _sources: Sequence[int]) -> fx.Node:
        """Return this vertex' columns of the weights that a `stage` router decided at the entry."""
        if index == 1:
            self._write_row(0, range(len(self.topology.targets)))
            self.settled = self._call(
                settle, (self.peaks[0], self.topology, self.threshold, self.training), "settled"
            )
            if self.has_parts:
                live = self._call(live_sources, (self.settled, self.topology), "live")
                self._write_parts(self.rows[0], self.peaks[0], self.settled, live)
            if self.deciders.gate.shrinks:
                self.settled = self._call(shrink, (self.settled, self.threshold), "shrunk")
            if self.collects:
                self.settled = self._call(
                    collect, (self.settled, self.cache, self.topology), "weights"
                )
        place = self.topology.incoming(index)
        weights = self.parts[0] if self.has_parts else self.settled
        return self._call(
            torch.narrow, (weights, 1, place.start, place.stop - place.start), f"a{index}"
        )

    def _add_deciders(self, index: int, places: Sequence[int]) -> None:
        """Add the router and gate of vertex `index`, which decide the edges at `places`."""
        axis, edges = self.stage.channel_axis, self.graph.edges(self.name)
        shape = self.vertices[index].shape
        parts = Parts(self.granularity, shape, self.channel_position % len(shape))
        make, is_tied = self.deciders.router, self.deciders.is_tied
        router = parts.make_router(make, len(places), axis, is_tied=is_tied)
        is_static = [edges[place].is_static for place in places]
        targets = [self.topology.targets[place] for place in places]
        gate = parts.around(self.deciders.gate.make(is_static, targets))
        self.routing.add_module(f"router_{index}", router)
        self.routing.add_module(f"gate_{index}", gate)

    def _write_row(self, index: int, places: Sequence[int]) -> None:
        """Write the router and gate at vertex `index`, which decide the edges at `places`."""
        self._add_deciders(index, places)
        routing = routing_name(self.name)
        logits = self._node(
            "call_module", f"{routing}.router_{index}", (self.shared[index],), f"logits{index}"
        )
        self.rows.append(
            self._node("call_module", f"{routing}.gate_{index}", (logits,), f"row{index}")
        )
        self.peaks.append(
            self._call(largest, (self.rows[-1],), f"peak{index}")
            if self.has_parts
            else self.rows[-1]
        )

    def _lift(self, adds: tuple[fx.Node, ...], block: Region) -> list[fx.Node]:
        """Reduce a block to F, the sum of its branches.

        Returns:
            The first branch and the sums; no op reads the block's last add afterwards.
        """
        lines = [self.flow.by_name[block.input], *adds]
        branches = [
            self.by_name[branch(add, line).name] for add, line in zip(adds, lines, strict=False)
        ]
        last = self.by_name[block.output]
        terms = branches[:1]
        with self.lowered.inserting_before(last):
            for number, term in enumerate(branches[1:], start=1):
                name = f"{self.prefix}_branches_{last.name}_{number}"
                terms.append(
                    self.lowered.create_node(
                        "call_function", torch.add, (terms[-1], term), {}, name=name
                    )
                )
        mark_lifted(terms, last)
        return terms

    def _erase(self, candidates: Sequence[fx.Node]) -> None:
        """Remove ops without readers: adds of lifted blocks and concats of growth stages."""
        open_ends = [
            *candidates,
            *(self.by_name[block.input] for block in reversed(self.stage.blocks)),
        ]
        for fx_node in dict.fromkeys(open_ends):
            is_rest = fx_node.op == "call_function" and fx_node.target in (torch.cat, torch.concat)
            if (
                not fx_node.users
                and (is_rest or fx_node in candidates)
                and fx_node.op != "placeholder"
            ):
                self.lowered.erase_node(fx_node)

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], name: str) -> fx.Node:
        return self._node("call_function", function, args, name)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], name: str) -> fx.Node:
        self.own.append(
            self.lowered.create_node(op, target, args, {}, name=f"{self.prefix}_{name}")
        )
        return self.own[-1]


def stage_granularity(graph: DynamicGraph, stage: str, asked: Granularity) -> Granularity:
    """Return the granularity of one stage: `asked`, or `edge` where edges do not simply add.

    Raises:
        WiringError: the channels of the stage cannot be split into so many groups.
    """
    if any(edge.kind != "add" for edge in graph.edges(stage)):
        return "edge"
    num_channels = graph.nodes(stage)[0].shape[graph.stages[stage].channel_position]
    if isinstance(asked, int) and num_channels % asked:
        raise WiringError(
            f"granularity={asked}: the {num_channels} channels of stage {stage!r} cannot be split"
            f' into {asked} equal groups. Use a number that divides them, or "channel".'
        )
    return asked


def stage_aggregation(graph: DynamicGraph, stage: str, asked: Aggregation) -> Aggregation:
    """Return the aggregation of one stage: `asked`, or `sum` where residuals are not lifted."""
    return asked if graph.stages[stage].residual == "lift" else "sum"


def stage_topology(graph: DynamicGraph, stage: str) -> Topology:
    """Return the edges of `stage` as vertex indices."""
    place = {node.name: index for index, node in enumerate(graph.nodes(stage))}
    edges = graph.edges(stage)
    return Topology(
        tuple(place[edge.source] for edge in edges), tuple(place[edge.target] for edge in edges)
    )
