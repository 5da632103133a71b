"""Which edges are open and which nodes an instance reaches: the one place that decides, for every executor, the meter and the budget.

Shape suffixes: B instances, E edges (of one vertex, or of a stage), V vertices. A weight of exactly 0 means an inactive edge, everywhere
after `open_edges`: thresholds are never negative, so an active weight is never 0.

1. `v0` is live. Vertex j is live iff a live node has an active edge into it; edges that leave a dead node are closed.
2. Where no live node has an active edge to `out`, the one with the largest weight opens (ties: the later node), at weight 1.
3. One pass in vertex order suffices. `settle` makes it for a whole stage, the steps alone serve routers that decide node by node.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """The candidate edges of one stage as vertex indices, in the graph's edge order: by target, then by source."""

    sources: tuple[int, ...]
    """Per edge, the vertex it leaves: 0 for v0."""
    targets: tuple[int, ...]
    """Per edge, the vertex it enters; the last vertex is `out`."""

    @property
    def num_vertices(self) -> int:
        """v0, v1 .. vN, out."""
        return self.targets[-1] + 1

    def incoming(self, vertex: int) -> slice:
        """Where the edges into `vertex` stand: they are neighbours in the edge order."""
        return slice(self.targets.index(vertex), len(self.targets) - self.targets[::-1].index(vertex))


def settle(raw_BE: Tensor, layout: Layout, threshold: Tensor, training: bool) -> Tensor:
    """The weights that apply, from those the gates gave.

    Args:
        raw_BE: bounded weights of all edges of a stage.
        layout: the stage's edges.
        threshold: 0-d, not negative.
        training: straight-through gradients.

    Returns:
        (B, E), 0 where an edge is inactive.
    """
    live: list[Tensor | None] = [None]
    parts: list[Tensor] = []
    for vertex in range(1, layout.num_vertices):
        place = layout.incoming(vertex)
        before = [live[source] for source in layout.sources[place]]
        weights = open_edges(raw_BE[:, place], before, threshold, training)
        if vertex == layout.num_vertices - 1:
            weights = open_output(weights, raw_BE[:, place], before, training)
        else:
            live.append(is_live(weights))
        parts.append(weights)
    return torch.cat(parts, dim=1)


def open_edges(raw_BE: Tensor, live: Sequence[Tensor | None], threshold: Tensor, training: bool) -> Tensor:
    """Drop edges at or below the threshold and edges whose source is dead for the instance.

    Args:
        raw_BE: bounded weights as the gate gave them.
        live: per edge, (B,) bool of its source node, or None for the entry, which is always live.
        threshold: 0-d, not negative. NaN weights stay open and visible.
        training: straight-through: the gradient passes dropped edges too, if their source is live.

    Returns:
        (B, E), 0 where an edge is inactive.
    """
    active_BE = ~(raw_BE <= threshold)
    if any(one is not None for one in live):
        source_live_BE = torch.stack([torch.ones_like(active_BE[:, 0]) if one is None else one for one in live], dim=1)
        active_BE = active_BE & source_live_BE
    else:
        source_live_BE = None
    weights_BE = torch.where(active_BE, raw_BE, 0.0)
    if not training:
        return weights_BE
    return _straight_through(weights_BE, raw_BE if source_live_BE is None else torch.where(source_live_BE, raw_BE, 0.0))


def open_output(weights_BE: Tensor, raw_BE: Tensor, live: Sequence[Tensor | None], training: bool) -> Tensor:
    """Where nothing reaches `out`, open the live edge of largest weight (ties: the later node), at weight 1.

    Where a wiring gives no live node an edge to `out` at all, nothing opens and the stage's output is zeros; the complete wiring, and
    any with v0 -> out, rules that out.

    Args:
        weights_BE: what `open_edges` left of the edges into `out`.
        raw_BE: their weights before.
        live: as in `open_edges`.
        training: pass the gradient straight through to the raw weight.

    Returns:
        (B, E) with at least one active edge for every instance that has a live source.
    """
    is_cut_B = ~(weights_BE != 0).any(dim=1)
    dead_BE = torch.stack([torch.zeros_like(is_cut_B) if one is None else ~one for one in live], dim=1)
    reachable_BE = raw_BE.masked_fill(dead_BE, -torch.inf)
    later_first_B = reachable_BE.flip(1).argmax(dim=1)
    places_E = torch.arange(raw_BE.shape[1] - 1, -1, -1, device=raw_BE.device)
    opens_BE = (places_E == later_first_B[:, None]) & is_cut_B[:, None] & ~dead_BE
    opened_BE = torch.where(opens_BE, 1.0, weights_BE)
    if not training:
        return opened_BE
    return _straight_through(opened_BE, torch.where(opens_BE, raw_BE, weights_BE))


def is_live(weights_BE: Tensor) -> Tensor:
    """(B,) bool: an active edge leads into the node. `open_edges` closed those of dead sources, so one pass suffices."""
    return (weights_BE.detach() != 0).any(dim=1)


def live_vertices(open_BE: Tensor, layout: Layout) -> Tensor:
    """(B, V): which vertices each instance reaches from v0.

    Args:
        open_BE: bool or 0 / 1, which edges are open; or probabilities, taken as independent, and then so is the result.
    """
    open_BE = open_BE.to(torch.promote_types(open_BE.dtype, torch.float32))
    live = [torch.ones_like(open_BE[:, 0])]
    for vertex in range(1, layout.num_vertices):
        place = layout.incoming(vertex)
        sources_BE = torch.stack([live[source] for source in layout.sources[place]], dim=1)
        live.append(1 - (1 - open_BE[:, place] * sources_BE).prod(dim=1))
    live[-1] = torch.ones_like(live[-1])
    return torch.stack(live, dim=1)


def leads_to_out(open_BE: Tensor, layout: Layout) -> Tensor:
    """(B, V): from which vertices open edges lead on to `out`; with a `stage` router only live nodes that do are computed.

    Args:
        open_BE: as for `live_vertices`.
    """
    open_BE = open_BE.to(torch.promote_types(open_BE.dtype, torch.float32))
    leads: dict[int, Tensor] = {layout.num_vertices - 1: torch.ones_like(open_BE[:, 0])}
    for vertex in range(layout.num_vertices - 2, -1, -1):
        onward = [
            1 - open_BE[:, edge] * leads[target]
            for edge, (source, target) in enumerate(zip(layout.sources, layout.targets, strict=True))
            if source == vertex
        ]
        leads[vertex] = 1 - torch.stack(onward).prod(dim=0)
    return torch.stack([leads[vertex] for vertex in range(layout.num_vertices)], dim=1)


def _straight_through(value: Tensor, gradient_of: Tensor) -> Tensor:
    """`value` forward, to the bit; the gradient of `gradient_of` backward."""
    return _StraightThrough.apply(value.detach(), gradient_of)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, gradient_of: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
