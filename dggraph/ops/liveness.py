"""Liveness: which edges are open and which nodes an instance reaches.

All executors, the MACs meter and the budget use this one definition:

1. `v0` is live. Vertex j is live if and only if a live node has an active edge into it. Edges that
   leave a dead node are closed.
2. Where no live node has an active edge to `out`, the one with the largest weight opens, at weight
   1 (ties: the later node).
3. One pass in vertex order suffices. `settle` makes it for a complete stage; routers that decide
   node by node use the single steps.

A weight of exactly 0 means an inactive edge, everywhere after `open_edges`: thresholds are never
negative, so an active weight is never 0.

All functions take torch tensors or numpy arrays. The host decides about a few instances in numpy,
where a small op costs a tenth.

Shape suffixes: B instances, E edges (of one vertex, or of a stage), V vertices.
"""

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, npt.NDArray[Any])


Column = Any
"""One vertex or edge for all instances.

This is a tensor (B,), or on the host an integer whose bit b is instance b: `&` and `|` of integers
take 40 ns.
"""


class Topology(NamedTuple):
    """The candidate edges of one stage as pairs of vertex indices.

    They are in the graph's edge order: by target, then by source.
    """

    sources: tuple[int, ...]
    """For each edge, the vertex that it leaves; 0 is v0."""
    targets: tuple[int, ...]
    """For each edge, the vertex that it enters; the last vertex is `out`."""

    @property
    def num_vertices(self) -> int:
        """The number of vertices: v0, v1 .. vN and out."""
        return self.targets[-1] + 1

    def incoming(self, vertex: int) -> slice:
        """Return the places of the edges into `vertex`, which are contiguous in the edge order."""
        start = self.targets.index(vertex)
        return slice(start, start + self.targets.count(vertex))

    def decided_by_column(self) -> dict[int, list[int]]:
        """Return, for each vertex but `out`, the places of the edges into the next vertex."""
        places = [self.incoming(vertex) for vertex in range(1, self.num_vertices)]
        return {source: list(range(place.start, place.stop)) for source, place in enumerate(places)}

    def outgoing(self) -> list[list[int]]:
        """Return, for each vertex, the places of the edges that leave it."""
        places: list[list[int]] = [[] for _ in range(self.num_vertices)]
        for edge, source in enumerate(self.sources):
            places[source].append(edge)
        return places


def settle(raw_BE: Array, topology: Topology, threshold: Array, training: bool) -> Array:
    """Apply the threshold and the liveness rules to the gates' weights of one stage.

    Args:
        raw_BE: bounded weights of all edges of a stage.
        topology: the stage's edges.
        threshold: 0-d, not negative.
        training: use straight-through gradients (tensors only).

    Returns:
        (B, E), 0 where an edge is inactive.
    """
    open_BE = ~(raw_BE <= threshold)
    live = _live_columns(open_BE, topology)
    live_BE = _unpack([live[source] for source in topology.sources], open_BE)
    weights_BE = drop_edges(raw_BE, live_BE, threshold, training)
    last = topology.incoming(topology.num_vertices - 1)
    before = [live_BE[:, edge] for edge in range(last.start, last.stop)]
    output_BE = open_output(weights_BE[:, last], raw_BE[:, last], before, training)
    settled_BE: Array = _library(raw_BE).concatenate([weights_BE[:, : last.start], output_BE], 1)
    return settled_BE


def open_edges(
    raw_BE: Array, live: Sequence[Array | None], threshold: Array, training: bool
) -> Array:
    """Drop edges at or below the threshold, and edges whose source is dead for the instance.

    Args:
        raw_BE: bounded weights from the gate.
        live: for each edge, whether its source is live, (B,) bool, or None for the entry, which is
            always live.
        threshold: 0-d, not negative. NaN weights stay open and visible.
        training: straight-through: the gradient also passes dropped edges whose source is live.

    Returns:
        (B, E), 0 where an edge is inactive.
    """
    if all(one is None for one in live):
        return drop_edges(raw_BE, None, threshold, training)
    always = _library(raw_BE).ones_like(raw_BE[:, 0] == 0)
    return drop_edges(
        raw_BE, _stack([always if one is None else one for one in live]), threshold, training
    )


def open_output(
    weights_BE: Array, raw_BE: Array, live: Sequence[Array | None], training: bool
) -> Array:
    """Open the live edge of largest weight, at weight 1, where nothing reaches `out`.

    The later node wins ties. If the wiring gives no live node an edge to `out`, nothing opens and
    the stage's output is zeros. The complete wiring, and any wiring with v0 -> out, rules that out.

    Args:
        weights_BE: the weights of the edges into `out`, after `open_edges`.
        raw_BE: their weights before `open_edges`.
        live: as in `open_edges`.
        training: pass the gradient straight through to the raw weight.

    Returns:
        (B, E) with at least one active edge for every instance that has a live source.
    """
    library = _library(raw_BE)
    is_cut_B = ~is_live(weights_BE)
    if library is np and not is_cut_B.any():
        return weights_BE
    dead_BE = _stack([library.zeros_like(is_cut_B) if one is None else ~one for one in live])
    reachable_BE = library.where(dead_BE, -np.inf, raw_BE)
    last_best_B = raw_BE.shape[1] - 1 - library.flip(reachable_BE, (1,)).argmax(1)
    places_BE = library.ones_like(dead_BE).cumsum(1) - 1
    opens_BE = (places_BE == last_best_B[:, None]) & is_cut_B[:, None] & ~dead_BE
    opened_BE: Array = library.where(opens_BE, 1.0, weights_BE)
    if not training:
        return opened_BE
    by_rule_BE: Array = library.where(opens_BE, raw_BE, weights_BE)
    return straight_through(opened_BE, by_rule_BE)


def is_live(weights_BE: Array) -> Array:
    """Whether an active edge leads into the node, (B,) bool.

    `open_edges` has closed the edges of dead sources, so one pass suffices.
    """
    live_B: Array = (weights_BE != 0).any(1)
    return live_B


def live_vertices(open_BE: Array, topology: Topology) -> Array:
    """Return (B, V): which vertices each instance reaches from v0; `out` is always live.

    Args:
        open_BE: which edges are open, as bool; or, for tensors, independent probabilities, which
            give probabilities.
        topology: the stage's edges.
    """
    return _unpack(_live_columns(open_BE, topology), open_BE)


def live_sources(weights_BE: Tensor, topology: Topology) -> Tensor:
    """Return (B, E): whether the source of each edge is live; `weights_BE` is 0 where closed."""
    live_BV = live_vertices(weights_BE.detach() != 0, topology)
    return of_vertices(live_BV, topology.sources)


def leads_to_out(open_BE: Array, topology: Topology) -> Array:
    """Return (B, V): from which vertices open edges lead on to `out`.

    With a `stage` router, only live nodes that do so are computed.

    Args:
        open_BE: as for `live_vertices`.
        topology: the stage's edges.
    """
    opened, outgoing = _pack(open_BE), topology.outgoing()
    leads = {topology.num_vertices - 1: _always(open_BE)}
    for vertex in range(topology.num_vertices - 2, -1, -1):
        edges = outgoing[vertex]
        leads[vertex] = _any_with(opened, edges, [leads[topology.targets[edge]] for edge in edges])
    return _unpack([leads[vertex] for vertex in range(topology.num_vertices)], open_BE)


def of_vertices(values_BV: Tensor, vertices: Sequence[int]) -> Tensor:
    """Return (B, E): for each edge, the value of its vertex in `vertices`.

    Indexing with a list would copy it to the device and wait.
    """
    columns = values_BV.unbind(1)
    return torch.stack([columns[vertex] for vertex in vertices], 1)


def _live_columns(open_BE: Array, topology: Topology) -> list[Column]:
    """Return the columns of `live_vertices`."""
    opened, always = _pack(open_BE), _always(open_BE)
    live: list[Column] = [always]
    for vertex in range(1, topology.num_vertices - 1):
        place = topology.incoming(vertex)
        live.append(_any_with(opened, place, [live[source] for source in topology.sources[place]]))
    return [*live, always]


def drop_edges(
    raw_BE: Array, source_live_BE: Array | None, threshold: Array, training: bool
) -> Array:
    """Compute `open_edges`, with the liveness of all sources in one array (B, E) or (B, 1)."""
    library, active_BE = _library(raw_BE), ~(raw_BE <= threshold)
    if source_live_BE is not None:
        active_BE = active_BE & source_live_BE
    weights_BE: Array = library.where(active_BE, raw_BE, 0.0)
    if not training:
        return weights_BE
    reachable_BE: Array = (
        raw_BE if source_live_BE is None else library.where(source_live_BE, raw_BE, 0.0)
    )
    return straight_through(weights_BE, reachable_BE)


def _any_with(opened: Any, edges: Any, ends: Sequence[Column]) -> Column:
    """Whether at least one of `edges` is open and its entry in `ends` is true.

    For probabilities this is the probability of that, under independence.
    """
    if not isinstance(opened, Tensor):
        numbers = opened[edges] if isinstance(edges, slice) else [opened[edge] for edge in edges]
        return reduce(operator.or_, map(operator.and_, numbers, ends))
    open_BE = opened[:, edges] if isinstance(edges, slice) else of_vertices(opened, edges)
    both_BE = open_BE * torch.stack(list(ends), 1)
    return both_BE.any(1) if both_BE.dtype == torch.bool else 1 - (1 - both_BE).prod(1)


def _pack(open_BE: Tensor | npt.NDArray[Any]) -> Any:
    """Return a tensor unchanged, and an array as one integer per edge."""
    if isinstance(open_BE, Tensor):
        return open_BE
    packed = np.packbits(open_BE.T, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _unpack(columns: Sequence[Column], like_BE: Array) -> Array:
    """Stack columns to (B, V), the inverse of `_pack`."""
    if isinstance(like_BE, Tensor):
        return torch.stack(list(columns), 1)
    size = -(-len(like_BE) // 8)
    packed = np.frombuffer(
        b"".join(column.to_bytes(size, "little") for column in columns), np.uint8
    ).reshape(len(columns), size)
    return np.unpackbits(packed, axis=1, count=len(like_BE), bitorder="little").T.view(np.bool_)


def _always(like_BE: Tensor | npt.NDArray[Any]) -> Column:
    return (
        torch.ones_like(like_BE[:, 0]) if isinstance(like_BE, Tensor) else (1 << len(like_BE)) - 1
    )


def _stack(columns: Sequence[Array]) -> Array:
    """Stack columns to (B, E); for small arrays `np.stack` would take three times as long."""
    stacked: Any = (
        torch.stack(list(columns), 1) if isinstance(columns[0], Tensor) else np.array(columns).T
    )
    return stacked  # type: ignore[no-any-return]


def _library(array: Tensor | npt.NDArray[Any]) -> Any:
    """Return torch or numpy, whichever `array` belongs to."""
    return torch if isinstance(array, Tensor) else np


def straight_through(value: Array, gradient_of: Array) -> Array:
    """Return `value`, bitwise identical, with the gradient of `gradient_of`. Tensors only."""
    assert isinstance(value, Tensor)
    return _StraightThrough.apply(value.detach(), gradient_of)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, gradient_of: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
