"""Edges with several weights: one for each channel, group of channels, or position.

A feature is scaled part by part. Whether an edge is open is still one decision for an image: it is
open if its largest weight exceeds the threshold. `liveness`, the meter and the budget therefore see
that one weight, (B, E), and only aggregation sees all of them.

Gates of such edges return (B, E, ...), which broadcasts against the features (B, ...) of an edge:
(B, E, C, 1, 1) for channels and (B, E, 1, H, W) for positions of feature maps (B, C, H, W).

Shape suffixes: B instances, E edges, P the parts of an edge (one or several axes).
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.ops.liveness import straight_through
from dggraph.ops.position_router import PositionRouter, TiedPositionRouter

Granularity = int | Literal["edge", "channel", "pixel"]
"""How many weights an edge has: one, one for each of so many channel groups, or for each place."""

GRANULARITIES: tuple[Literal["edge", "channel", "pixel"], ...] = ("edge", "channel", "pixel")


def read_granularity(given: object) -> Granularity:
    """Return a granularity from what a caller or an archive gives, such as `4` or `"4"`.

    Raises:
        InputError: it is none.
    """
    number = int(given) if isinstance(given, str) and given.isdecimal() else given
    if isinstance(number, str) and number in GRANULARITIES:
        return number
    if isinstance(number, int) and not isinstance(number, bool) and number >= 1:
        return number
    close = difflib.get_close_matches(str(given), GRANULARITIES, n=1)
    raise InputError(
        f"granularity={given!r} is not one of {', '.join(GRANULARITIES)}, and not a whole number of"
        f" channel groups such as 4.{f' Did you mean {close[0]!r}?' if close else ''}"
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the edges of one stage are weighed by."""

    granularity: Granularity
    shape: tuple[int, ...]
    """Shape of the features, without the batch."""
    channel_position: int
    """Axis of the channels in `shape`."""

    @property
    def num_groups(self) -> int:
        """Weights that a router gives each edge from pooled features."""
        num_channels = self.shape[self.channel_position]
        if isinstance(self.granularity, int):
            return self.granularity
        return num_channels if self.granularity == "channel" else 1

    def around(self, gate: nn.Module) -> nn.Module:
        """Return `gate`, from logits to weights, both (B, E), as one for all parts of an edge."""
        if self.granularity == "edge":
            return gate
        if self.granularity == "pixel":
            return PositionGate(gate, self.channel_position)
        return ChannelGate(gate, self)

    def make_router(
        self, make: Callable[..., nn.Module], num_edges: int, channel_axis: int, *, is_tied: bool
    ) -> nn.Module:
        """Return a router from features (B, ...) to what the gate of this granularity takes.

        Args:
            make: the factory of a router from pooled features.
            num_edges: that it decides.
            channel_axis: 1 for NCHW, -1 for NHWC and tokens.
            is_tied: whether `make` is that of a `TiedRouter`.
        """
        num_channels = self.shape[self.channel_position]
        if self.granularity == "pixel":
            kind = TiedPositionRouter if is_tied else PositionRouter
            return kind(num_channels, num_edges, channel_axis)
        named = {"num_parts": self.num_groups} if is_tied else {}
        return make(num_channels, num_edges * self.num_groups, channel_axis, **named)


class ChannelGate(nn.Module):
    """A gate that gives each edge one weight for every channel or group of channels.

    Args:
        gate: maps logits to weights, both (N, E).
        parts: the parts of an edge, of which G is the number of groups.
    """

    num_groups: int

    def __init__(self, gate: nn.Module, parts: Parts) -> None:
        """Keep the gate."""
        super().__init__()
        self.gate, self.num_groups = gate, parts.num_groups
        self.repeats = parts.shape[parts.channel_position] // self.num_groups
        self.around = (
            (1,) * parts.channel_position,
            (1,) * (len(parts.shape) - 1 - parts.channel_position),
        )

    def forward(self, logits_BN: Tensor) -> Tensor:
        """Map logits (B, E * G) to weights (B, E, ..., C, ...), 1 on the axes of positions."""
        return self.weigh(self.gate, logits_BN)

    def weigh(self, gate: Callable[[Tensor], Tensor], logits_BN: Tensor) -> Tensor:
        """Compute `forward` with `gate`, which maps logits to weights, both (N, E)."""
        logits_BGE = logits_BN.view(len(logits_BN), -1, self.num_groups).transpose(1, 2)
        weights_BEG = gate(logits_BGE.flatten(0, 1)).view_as(logits_BGE).transpose(1, 2)
        if self.repeats != 1:
            weights_BEG = weights_BEG.repeat_interleave(self.repeats, 2)
        before, after = self.around
        weights_BEP: Tensor = weights_BEG.reshape(
            *weights_BEG.shape[:2], *before, weights_BEG.shape[2], *after
        )
        return weights_BEP


class PositionGate(nn.Module):
    """A gate that gives each edge one weight for every position.

    Args:
        gate: maps logits to weights, both (N, E).
        channel_position: of the channels among the axes of features without the batch.
    """

    def __init__(self, gate: nn.Module, channel_position: int) -> None:
        """Keep the gate."""
        super().__init__()
        self.gate, self.channel_position = gate, channel_position

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (B, *positions, E) to weights (B, E, ...) of the axes of features."""
        return self.weigh(self.gate, logits)

    def weigh(self, gate: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
        """Compute `forward` with `gate`, which maps logits to weights, both (N, E)."""
        weights = gate(logits.flatten(0, -2)).view_as(logits).movedim(-1, 1)
        return weights.unsqueeze(2 + self.channel_position)


PARTS_GATES = (ChannelGate, PositionGate)
"""The gates of edges with several weights."""


def largest(weights_BEP: Tensor) -> Tensor:
    """Return the largest weight of each edge, (B, E); one weight an edge is its own largest."""
    return weights_BEP if weights_BEP.ndim == 2 else weights_BEP.flatten(2).amax(2)


def settle_parts(
    parts_BEP: Tensor,
    raw_BE: Tensor,
    weights_BE: Tensor,
    live: Sequence[Tensor | None] | Tensor,
    threshold: Tensor,
    training: bool,
) -> Tensor:
    """Close all parts of closed edges.

    Args:
        parts_BEP: bounded weights from the gate.
        raw_BE: the largest of each edge.
        weights_BE: the same after `liveness`, 0 where the edge is closed.
        live: whether the source of each edge is live, as (B, E), or (B,) for each edge and None for
            the entry, which is always live.
        threshold: 0-d.
        training: straight-through: the gradient also passes closed edges whose source is live.

    Returns:
        (B, E, P), or `weights_BE` where edges have one weight.
    """
    if parts_BEP.ndim == 2:
        return weights_BE
    settled_BEP = close_parts(parts_BEP, raw_BE, weights_BE, threshold)
    if not training:
        return settled_BEP
    if not isinstance(live, Tensor):
        always_B = torch.ones_like(raw_BE[:, 0], dtype=torch.bool)
        live = torch.stack([always_B if one is None else one for one in live], 1)
    reachable_BEP = torch.where(_like(live, parts_BEP), parts_BEP, 0.0)
    return straight_through(settled_BEP, reachable_BEP)


def close_parts(
    parts_BEP: Tensor, raw_BE: Tensor, weights_BE: Tensor, threshold: Tensor | float
) -> Tensor:
    """Return `settle_parts` without its gradient through closed edges.

    An edge that the rule for `out` opened has weight 1 in all parts.
    """
    is_open_BE = weights_BE.detach() != 0
    is_forced_BE = is_open_BE & (raw_BE.detach() <= threshold)
    settled_BEP = torch.where(_like(is_open_BE, parts_BEP), parts_BEP, 0.0)
    return torch.where(_like(is_forced_BE, parts_BEP), 1.0, settled_BEP)


def shrink_parts(settled_BEP: Tensor, threshold: Tensor | float) -> Tensor:
    """Compute `gating.shrink` for all parts: those of an open edge that lie below become 0."""
    tau = torch.as_tensor(threshold, dtype=settled_BEP.dtype, device=settled_BEP.device)
    shrunk_BEP = (settled_BEP - tau).clamp_min(0) / (1 - tau)
    return straight_through(shrunk_BEP, settled_BEP / (1 - tau))


def applied_parts(
    parts_BEP: Tensor, raw_BE: Tensor, weights_BE: Tensor, threshold: float, shrinks: bool
) -> Tensor:
    """Return the parts that aggregation uses; `shrinks`: behind a `ShrinkGate`. No gradients."""
    settled_BEP = close_parts(parts_BEP, raw_BE, weights_BE, threshold)
    return shrink_parts(settled_BEP, threshold) if shrinks else settled_BEP


def mean_of_parts(parts_BEP: Tensor) -> Tensor:
    """Return the mean weight of each edge, (B, E), which is 0 for closed edges alone."""
    flat = parts_BEP.flatten(2)
    mean_BE, tiny = flat.mean(2), torch.finfo(parts_BEP.dtype).tiny
    return torch.where((flat != 0).any(2) & (mean_BE == 0), tiny, mean_BE)


def _like(values_BE: Tensor, parts_BEP: Tensor) -> Tensor:
    return values_BE.reshape(*values_BE.shape, *[1] * (parts_BEP.ndim - 2))
