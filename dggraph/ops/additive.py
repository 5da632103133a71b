"""Aggregation that adds a normalised, weighted sum to the plain one.

A node reads sum x_i + gain * norm(sum a_i norm(x_i)) over its open edges: the weights act on what
is added, the backbone's own sum stays. Learned gains start at 0. Additive routing over depth has
this form (arXiv 2605.18855); the default, in `aggregation`, weighs the sum itself.

Shape suffixes: B instances, E incoming edges.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dggraph.ops.aggregation import aggregate
from dggraph.ops.pooling import normalised


class Gain(nn.Module):
    """The factor of what is added in front of one node, learned from 0."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1, dtype=torch.float32))


def add_normed(
    features: Sequence[Tensor], weights_BE: Tensor, gain: Tensor, channel_axis: int
) -> Tensor:
    """Return sum x_e + gain * norm(sum_e a_e norm(x_e)) over open edges, a fresh tensor.

    Args:
        features: E tensors (B, ...) of one shape.
        weights_BE: a, 0 where an edge is closed; they get their gradient here.
        gain: (1,).
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
    """
    is_open_BE = (weights_BE.detach() != 0).to(weights_BE.dtype)
    own = aggregate(features, is_open_BE)
    added = aggregate([normalised(one, channel_axis) for one in features], weights_BE)
    return add_gained(own, added, gain, channel_axis)


def add_gained(own: Tensor, added: Tensor, gain: Tensor, channel_axis: int) -> Tensor:
    """Return own + gain * norm(added)."""
    return own + gain.to(own.dtype) * normalised(added, channel_axis)
