"""Write what decides the edges of one stage: routers and gates, and which edges are open.

In front of block j, `NodeEdges` inserts the router and gate of node j-1, which return its adjacency
row; `weigh`, this row after the threshold and without a dead node's edges; `column`, the weights of
the edges into j; and `is_live`. In front of `out`, `open_output` ensures that at least one edge
reaches it.

`StageEdges` decides all edges at the stage's entry by a single `settle`. `ColumnEdges` decides the
edges into j at once, from what its sources and the newest feature gave (`ops/content_router`).

Edges with several weights (`ops/granularity`) are decided by their largest one. `settle_parts` then
closes the parts of closed edges, and aggregation reads the parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from dggraph.compiler.lowered import StageRouting, routing_name
from dggraph.compiler.planning import Aggregation
from dggraph.errors import WiringError
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.collecting import collect, weigh
from dggraph.ops.content_router import content_logits, of_live
from dggraph.ops.gating import GateKind, column, shrink
from dggraph.ops.granularity import Granularity, Parts, largest, settle_parts, shrink_parts
from dggraph.ops.liveness import Topology, is_live, live_sources, open_edges, open_output, settle


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


@dataclass(slots=True)
class Emitter:
    """Adds ops to the lowered graph, where it inserts at present."""

    graph: fx.Graph
    prefix: str
    """Name of the stage, with which all names begin."""
    own: list[fx.Node] = field(default_factory=list)
    """Every op that was added."""

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], name: str) -> fx.Node:
        """Add a call of `function`."""
        return self.node("call_function", function, args, name)

    def node(self, op: str, target: Any, args: tuple[Any, ...], name: str) -> fx.Node:
        """Add an op of any kind."""
        self.own.append(self.graph.create_node(op, target, args, {}, name=f"{self.prefix}_{name}"))
        return self.own[-1]


class EdgeWriter(ABC):
    """Writes the decisions of one stage, vertex by vertex.

    Args:
        emitter: Adds the ops.
        graph: The wired graph.
        stage: Name of the stage.
        deciders: Routers, gates and threshold.
        routing: Gets the routers and gates.
        training: The op that reads `training`.
    """

    def __init__(
        self,
        emitter: Emitter,
        graph: DynamicGraph,
        stage: str,
        deciders: Deciders,
        routing: StageRouting,
        training: fx.Node,
    ) -> None:
        self.emitter, self.graph, self.stage = emitter, graph, stage
        self.deciders, self.routing, self.training = deciders, routing, training
        self.vertices, self.topology = graph.nodes(stage), stage_topology(graph, stage)
        self.granularity = stage_granularity(graph, stage, deciders.granularity)
        self.aggregation = stage_aggregation(graph, stage, deciders.aggregation)
        self.has_parts = self.granularity != "edge"
        self.collects = (
            self.can_collect()
            and not self.has_parts
            and self.aggregation == "sum"
            and all(edge.kind == "add" for edge in graph.edges(stage))
        )
        """Whether `weigh` or `collect` computes the gradients of all edge weights."""
        self.rows: list[fx.Node] = []
        """What gates return."""
        self.peaks: list[fx.Node] = []
        """One weight an edge; the rows themselves where edges have one."""
        self.parts: list[fx.Node] = []
        self.live: list[fx.Node | None] = [None]
        self.columns: list[fx.Node] = []

    def begin(self, threshold: fx.Node, cache: fx.Node) -> None:
        """Set the ops that read the stage's threshold and make its cache."""
        self.threshold, self.cache = threshold, cache

    def can_collect(self) -> bool:
        """Whether the weights that aggregation reads are those that `weigh` or `collect` gave."""
        return False

    @abstractmethod
    def write(self, index: int, sources: Sequence[int], newest: fx.Node) -> fx.Node:
        """Write the weights of the edges into vertex `index`, (B, E) or (B, E, ...).

        Args:
            index: A vertex from 1 on.
            sources: Vertices with an edge into it.
            newest: The features of the vertex before.
        """

    @abstractmethod
    def finish(self) -> tuple[fx.Node, fx.Node]:
        """Return the weights of all edges after and before the threshold."""

    def through(self, sources: Sequence[int]) -> list[fx.Node]:
        """Return the results of `weigh` or `collect` that weights of these sources came from."""
        return []

    def gates(self) -> tuple[fx.Node, ...]:
        """Return the stage's edge weights after and before the threshold, and all parts."""
        gates = self.finish()
        if len(self.parts) > 1:
            return (*gates, self.emitter.call(torch.cat, (self.parts, 1), "parts"))
        return (*gates, *self.parts)

    def add_deciders(self, index: int, places: Sequence[int]) -> None:
        """Add the router and gate of vertex `index`, which decide the edges at `places`."""
        edges, facts = self.graph.edges(self.stage), self.graph.stages[self.stage]
        shape = self.vertices[index].shape
        parts = Parts(self.granularity, shape, facts.channel_position % len(shape))
        make, is_tied = self.deciders.router, self.deciders.is_tied
        router = parts.make_router(make, len(places), facts.channel_axis, is_tied=is_tied)
        is_static = [edges[place].is_static for place in places]
        targets = [self.topology.targets[place] for place in places]
        gate = parts.around(self.deciders.gate.make(is_static, targets))
        self.routing.add_module(f"router_{index}", router)
        self.routing.add_module(f"gate_{index}", gate)

    def call_decider(self, kind: str, index: int, given: fx.Node, name: str) -> fx.Node:
        """Write a call of the `router` or `gate` of vertex `index`."""
        path = f"{routing_name(self.stage)}.{kind}_{index}"
        return self.emitter.node("call_module", path, (given,), name)

    def write_row(self, index: int, places: Sequence[int], features: fx.Node) -> None:
        """Write the router and gate at vertex `index`, which decide the edges at `places`."""
        self.add_deciders(index, places)
        logits = self.call_decider("router", index, features, f"logits{index}")
        self.rows.append(self.call_decider("gate", index, logits, f"row{index}"))
        self.peaks.append(
            self.emitter.call(largest, (self.rows[-1],), f"peak{index}")
            if self.has_parts
            else self.rows[-1]
        )

    def write_parts(self, rows: fx.Node, raw: fx.Node, settled: fx.Node, live: Any) -> None:
        """Write the parts of edges that are open by `settled`, as aggregation reads them."""
        given = (rows, raw, settled, live, self.threshold, self.training)
        number = len(self.parts) + 1
        parts = self.emitter.call(settle_parts, given, f"settled_parts{number}")
        if self.deciders.gate.shrinks:
            parts = self.emitter.call(
                shrink_parts, (parts, self.threshold), f"shrunk_parts{number}"
            )
        self.parts.append(parts)

    def settle_column(
        self, index: int, raw: fx.Node | None, opened: fx.Node, live: Sequence[fx.Node | None]
    ) -> fx.Node:
        """Write what follows for the vertex from its edges that are open: is it live?

        Args:
            index: The vertex.
            raw: For `out`, the weights of its edges before the threshold.
            opened: The same after it.
            live: For each edge, whether its source is live.
        """
        if raw is not None:
            return self.emitter.call(
                open_output, (opened, raw, live, self.training), f"reached{index}"
            )
        self.live.append(self.emitter.call(is_live, (opened,), f"live{index}"))
        return opened

    def shrunk(self, weights: fx.Node, name: str) -> fx.Node:
        """Write what `shrink` takes off, where the gate is one that shrinks."""
        if not self.deciders.gate.shrinks:
            return weights
        return self.emitter.call(shrink, (weights, self.threshold), name)


class NodeEdges(EdgeWriter):
    """Each vertex decides the edges that leave it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.decided: list[fx.Node] = []

    def can_collect(self) -> bool:
        """See `EdgeWriter.can_collect`."""
        return not self.deciders.gate.shrinks

    def write(self, index: int, sources: Sequence[int], newest: fx.Node) -> fx.Node:
        """See `EdgeWriter.write`."""
        source, call = index - 1, self.emitter.call
        outgoing = self.topology.outgoing()[source]
        self.write_row(source, outgoing, newest)
        targets = tuple(self.topology.targets[edge] for edge in outgoing)
        how = (self.threshold, self.training, self.cache if self.collects else None)
        row = (self.peaks[-1], self.live[-1], *how, source, targets)
        self.decided.append(call(weigh, row, f"w{source}"))
        picks, live = self._picks(index), [self.live[one] for one in sources]
        opened = call(column, (self.decided, picks), f"a{index}")
        is_out = index == len(self.vertices) - 1
        raw = call(column, (self.peaks, picks), f"raw{index}") if is_out or self.has_parts else None
        settled = self.settle_column(index, raw if is_out else None, opened, live)
        self.columns.append(self.shrunk(settled, f"shrunk{index}"))
        if raw is None or not self.has_parts:
            return self.columns[-1]
        self.write_parts(call(column, (self.rows, picks), f"rows{index}"), raw, settled, live)
        return self.parts[-1]

    def finish(self) -> tuple[fx.Node, fx.Node]:
        """See `EdgeWriter.finish`."""
        weights = self.emitter.call(torch.cat, (self.columns, 1), "weights")
        picks = [pick for index in range(1, len(self.vertices)) for pick in self._picks(index)]
        return weights, self.emitter.call(column, (self.peaks, tuple(picks)), "raw")

    def through(self, sources: Sequence[int]) -> list[fx.Node]:
        """See `EdgeWriter.through`."""
        return [self.decided[source] for source in sources]

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


class StageEdges(EdgeWriter):
    """The entry decides all edges of the stage."""

    def can_collect(self) -> bool:
        """See `EdgeWriter.can_collect`."""
        return True

    def write(self, index: int, sources: Sequence[int], newest: fx.Node) -> fx.Node:
        """See `EdgeWriter.write`."""
        if index == 1:
            self._write_all(newest)
        place = self.topology.incoming(index)
        weights = self.parts[0] if self.has_parts else self.settled
        narrowed = (weights, 1, place.start, place.stop - place.start)
        return self.emitter.call(torch.narrow, narrowed, f"a{index}")

    def _write_all(self, entry: fx.Node) -> None:
        call = self.emitter.call
        self.write_row(0, range(len(self.topology.targets)), entry)
        given = (self.peaks[0], self.topology, self.threshold, self.training)
        settled = call(settle, given, "settled")
        if self.has_parts:
            live = call(live_sources, (settled, self.topology), "live")
            self.write_parts(self.rows[0], self.peaks[0], settled, live)
        self.settled = self.shrunk(settled, "shrunk")
        if self.collects:
            self.settled = call(collect, (self.settled, self.cache, self.topology), "weights")

    def finish(self) -> tuple[fx.Node, fx.Node]:
        """See `EdgeWriter.finish`."""
        return self.settled, self.peaks[0]

    def through(self, sources: Sequence[int]) -> list[fx.Node]:
        """See `EdgeWriter.through`."""
        return [self.settled]


class ColumnEdges(EdgeWriter):
    """Each vertex decides the edges into the next one, by what their sources answer."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.answers: list[fx.Node] = []

    def write(self, index: int, sources: Sequence[int], newest: fx.Node) -> fx.Node:
        """See `EdgeWriter.write`."""
        source, place, call = index - 1, self.topology.incoming(index), self.emitter.call
        self.add_deciders(source, range(place.start, place.stop))
        read = self.call_decider("router", source, newest, f"read{source}")
        self.answers.append(call(of_live, (read, self.live[source]), f"answer{source}"))
        answers, width = [self.answers[one] for one in sources], self.routing.router(source).width
        logits = call(content_logits, (answers, self.answers[-1], width), f"logits{index}")
        raw = self.call_decider("gate", source, logits, f"raw{index}")
        self.peaks.append(raw)
        live = [self.live[one] for one in sources]
        opened = call(open_edges, (raw, live, self.threshold, self.training), f"a{index}")
        is_out = index == len(self.vertices) - 1
        settled = self.settle_column(index, raw if is_out else None, opened, live)
        self.columns.append(self.shrunk(settled, f"shrunk{index}"))
        return self.columns[-1]

    def finish(self) -> tuple[fx.Node, fx.Node]:
        """See `EdgeWriter.finish`."""
        weights = self.emitter.call(torch.cat, (self.columns, 1), "weights")
        return weights, self.emitter.call(torch.cat, (self.peaks, 1), "raw")


EDGE_WRITERS: dict[str, type[EdgeWriter]] = {
    "node": NodeEdges,
    "stage": StageEdges,
    "column": ColumnEdges,
}
"""For each scope of `routing.ROUTERS`."""


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
