"""Decisions of routers on the host: which instances run each node, by whose weights.

Shape suffixes: B instances, E edges, V vertices of a stage, R rows of one node.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dggraph.compiler.lowered import StageRouting
from dggraph.compiler.partition import BoundRouting
from dggraph.errors import GateError
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.content_router import ContentRouter, content_logits
from dggraph.ops.device_copies import number, to_device, to_host, to_lists
from dggraph.ops.gating import shrink
from dggraph.ops.granularity import PARTS_GATES, applied_parts, largest
from dggraph.ops.liveness import (
    Topology,
    is_live,
    leads_to_out,
    live_vertices,
    open_edges,
    open_output,
    settle,
)
from dggraph.ops.rows import Places, Weights


class Decided(NamedTuple):
    """What a `stage` router gave, on the host."""

    rows: list[list[float]]
    """The raw weights of each image, (B, E)."""
    threshold: float
    dtype: torch.dtype
    """The type of the weights as a tensor."""
    parts: Tensor | None = None
    """All raw weights, (B, E, ...), where edges have several; `rows` has the largest of each."""


def decide_stage(routing: BoundRouting, entry: Tensor) -> Decided:
    """Ask the `stage` router of `routing` about the features of v0, (B, ...)."""
    if 0 in routing.constant:
        rows = [routing.constant[0]] * len(entry)
        return Decided(rows, number(routing.threshold), torch.float32)
    if len(entry) == 1 and 0 in routing.decide_one:
        return Decided([routing.decide_one[0](entry)], number(routing.threshold), torch.float32)
    raw_BEP = routing.decide[0](entry)
    rows, threshold = to_lists(largest(raw_BEP), routing.threshold)
    return Decided(rows, threshold, raw_BEP.dtype, raw_BEP if raw_BEP.ndim > 2 else None)


class Decisions:
    """Which edges are open for each image of a batch, on the host."""

    dtype: torch.dtype
    """The type of the weights as a tensor."""
    threshold: npt.NDArray[Any]
    raw_BE: Weights
    """The largest raw weight of each edge."""
    weights_BE: Weights
    """The same after the threshold and liveness: 0 where an edge is closed."""
    parts: Tensor | None
    """All raw weights, (B, E, ...), where edges have several."""
    shrinks: bool
    """Whether the gate is a `ShrinkGate`."""

    def closed_parts(self, place: slice) -> Tensor:
        """Return the parts (B, edges, ...) of the edges at `place`, those of closed ones as 0."""
        assert self.parts is not None
        raw_BE, weights_BE = (
            to_device(torch.from_numpy(one[:, place]), self.parts.device)
            for one in (self.raw_BE, self.weights_BE)
        )
        threshold = float(self.threshold)
        return applied_parts(self.parts[:, place], raw_BE, weights_BE, threshold, self.shrinks)


class StageDecisions(Decisions):
    """Decisions of a `stage` router, all made at the entry."""

    def __init__(self, topology: Topology, decided: Decided, *, shrinks: bool) -> None:
        wide = np.float64 if decided.dtype == torch.float64 else np.float32
        self.dtype, self.parts, self.shrinks = decided.dtype, decided.parts, shrinks
        self.threshold = np.asarray(decided.threshold, wide)
        self.raw_BE = np.asarray(decided.rows, wide).reshape(-1, len(topology.sources))
        self.weights_BE = settle(self.raw_BE, topology, self.threshold, False)
        if shrinks:
            self.weights_BE = shrink(self.weights_BE, self.threshold)
        open_BE = self.weights_BE != 0
        self.last_reader = [0] * topology.num_vertices
        for edge in np.flatnonzero(open_BE.any(0)).tolist():
            self.last_reader[topology.sources[edge]] = topology.targets[edge]
        self.runs_BV = live_vertices(open_BE, topology) & leads_to_out(open_BE, topology)

    def runs(self, vertex: int) -> npt.NDArray[np.bool_]:
        """Whether `vertex` runs, for each image, (B,)."""
        runs_B: npt.NDArray[np.bool_] = self.runs_BV[:, vertex]
        return runs_B

    def done_with(self, vertex: int) -> list[int]:
        """Return the nodes that are not read after `vertex`.

        Their features are freed, and the next block writes to memory that is still in the cache.
        """
        return [source for source in range(1, vertex) if self.last_reader[source] == vertex]

    def ran(self, vertex: int, output: Tensor | None, instances: Places | None) -> None:
        """Do nothing: the decisions do not depend on outputs of nodes."""


class NodeDecisions(Decisions):
    """Decisions of `node` routers, made row by row as nodes run.

    Each column is settled when the pass reaches it, with the same steps as in the dense form.
    """

    def __init__(
        self,
        topology: Topology,
        routing: StageRouting,
        entry: Tensor,
        graph: DynamicGraph,
        stage: str,
        *,
        shrinks: bool,
    ) -> None:
        self.topology, self.routing, self.graph, self.stage = topology, routing, graph, stage
        self.shrinks = shrinks
        wide = np.float64 if routing.threshold.dtype == torch.float64 else np.float32
        self.threshold = np.asarray(number(routing.threshold), wide)
        self.decided, self.num_instances = self._decided_edges(), len(entry)
        self.live: list[npt.NDArray[np.bool_] | None] = [None]
        self.zero = entry.new_zeros((), dtype=torch.promote_types(entry.dtype, torch.float32))
        self.parts = None
        row_BE = self._row(0, entry, None)
        self.dtype = row_BE.dtype
        row_array = to_numpy(row_BE)
        self.raw_BE = np.zeros((len(entry), len(topology.sources)), dtype=row_array.dtype)
        self.weights_BE = np.zeros_like(self.raw_BE)
        self._decide(0, row_array)

    def runs(self, vertex: int) -> npt.NDArray[np.bool_]:
        """Whether `vertex` runs, for each image, (B,)."""
        runs_B = self.live[vertex]
        assert runs_B is not None
        return runs_B

    def done_with(self, vertex: int) -> list[int]:
        """Return no nodes, since a later router may still open an edge from any of them."""
        return []

    def ran(self, vertex: int, output: Tensor | None, instances: Places | None) -> None:
        """Let the router of `vertex` decide on its output."""
        self._decide(vertex, to_numpy(self._row(vertex, output, instances)))

    def _row(self, vertex: int, output: Tensor | None, instances: Places | None) -> Tensor:
        """Return weights (B, E); the gate sees the full batch, with logit 0 for dead images."""
        edges = self.decided[vertex]
        gate = self.routing.gate(vertex)
        if output is None and isinstance(gate, PARTS_GATES):  # nothing reads it
            return self.zero.expand(self.num_instances, len(edges))
        logits_BE = self._logits(vertex, self._read(vertex, output, instances))
        row_BEP: Tensor = gate(logits_BE)
        if row_BEP.ndim > 2:
            if self.parts is None:
                num_edges = len(self.topology.sources)
                self.parts = row_BEP.new_zeros(self.num_instances, num_edges, *row_BEP.shape[2:])
            self.parts[:, edges] = row_BEP
        return largest(row_BEP)

    def _decided_edges(self) -> Mapping[int, Sequence[int]]:
        """Return the places of the edges that each vertex decides."""
        return dict(enumerate(self.topology.outgoing()))

    def _read(self, vertex: int, output: Tensor | None, instances: Places | None) -> Tensor | None:
        """Return what the router of `vertex` gives: (B, ...), 0 where dead; None if all are."""
        if output is None:
            return None
        read_RN: Tensor = self.routing.router(vertex)(output)
        if instances is None:
            return read_RN
        index = to_device(torch.from_numpy(instances), output.device)
        read_BN = read_RN.new_zeros(self.num_instances, *read_RN.shape[1:])
        return read_BN.index_put((index,), read_RN)

    def _logits(self, vertex: int, read: Tensor | None) -> Tensor:
        """Return the logits (B, E) of the edges that `vertex` decides."""
        num_edges = len(self.decided[vertex])
        return self.zero.expand(self.num_instances, num_edges) if read is None else read

    def _decide(self, vertex: int, row_BE: Weights) -> None:
        """Fill the row of `vertex`, then settle the column of the next vertex.

        All sources of the next vertex have decided by then.
        """
        self.raw_BE[:, self.decided[vertex]] = row_BE
        if np.isnan(self.raw_BE).any():
            refuse_nan(self.graph, self.stage, torch.from_numpy(self.raw_BE))
        place = self.topology.incoming(vertex + 1)
        raw_BE, live = (
            self.raw_BE[:, place],
            [self.live[source] for source in self.topology.sources[place]],
        )
        weights_BE = open_edges(raw_BE, live, self.threshold, False)
        if vertex + 1 == self.topology.num_vertices - 1:
            weights_BE = open_output(weights_BE, raw_BE, live, False)
        self.live.append(is_live(weights_BE))
        if self.shrinks:
            weights_BE = shrink(weights_BE, self.threshold)
        self.weights_BE[:, place] = weights_BE


class ColumnDecisions(NodeDecisions):
    """Decisions of `column` routers, see `content_router`: edges into the next node at once."""

    def _decided_edges(self) -> Mapping[int, Sequence[int]]:
        self.reads: list[Tensor] = []
        return self.topology.decided_by_column()

    def _logits(self, vertex: int, read: Tensor | None) -> Tensor:
        router = self.routing.router(vertex)
        assert isinstance(router, ContentRouter)
        if read is None:
            read = self.zero.expand(self.num_instances, 2 * router.width + router.num_edges)
        self.reads.append(read)
        sources = self.topology.sources[self.topology.incoming(vertex + 1)]
        return content_logits([self.reads[source] for source in sources], read, router.width)


def refuse_nan(graph: DynamicGraph, stage: str, raw_BE: Tensor) -> None:
    """Raise a GateError for the first NaN among the weights of `stage`, with edge and image."""
    for instance, place in raw_BE.isnan().nonzero().tolist()[:1]:
        edge = graph.edges(stage)[place]
        raise GateError(
            f"the weight of edge {edge.source} -> {edge.target} is NaN for instance {instance}: the"
            f" features of node {edge.source!r} or its router are not finite. Look for a diverged"
            " training run or a broken input."
        )


def to_numpy(values: Tensor) -> Weights:
    """Copy to the host; bfloat16 becomes float32, since numpy has no bfloat16."""
    (array,) = to_host(values)
    return array
