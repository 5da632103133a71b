"""Aggregation: the weighted sum (or concat) of the features that reach a node.

Shape suffixes: B instances, E incoming edges. An edge of weight 0 contributes exactly nothing, even where its source holds inf or
nan, and every result is a fresh tensor: the first op of a block may overwrite it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def aggregate(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """Sum `features`, each scaled per instance, left to right.

    Weight 1 is exact: with one open edge of weight 1 the result is that feature to the bit.

    Args:
        features: E tensors (B, ...) of one shape.
        weights_BE: one weight per instance and edge; 0 is inactive.

    Returns:
        A fresh (B, ...) tensor. Backward, x_i gets gradient through active edges alone; every weight gets
        dA_ij = <dz_j, x_i>, non-finite elements of x_i taken as 0, so that a closed edge can open again.
    """
    total, *others = [gated(x, weights_BE[:, edge]) for edge, x in enumerate(features)]
    for term in others:
        total = total + term
    return total


def concatenate(features: Sequence[Tensor], weights_BE: Tensor, channel_axis: int) -> Tensor:
    """Concatenate `features` along `channel_axis`, each scaled per instance; a closed edge gives zeros."""
    return torch.cat([gated(x, weights_BE[:, edge]) for edge, x in enumerate(features)], dim=channel_axis)


def adapt(features: Tensor, num_channels: int, channel_axis: int) -> Tensor:
    """Pad with zero channels or crop to `num_channels`; everything else stays."""
    axis = channel_axis % features.ndim
    missing = num_channels - features.shape[axis]
    if missing <= 0:
        return features.narrow(axis, 0, num_channels)
    shape = [*features.shape]
    shape[axis] = missing
    return torch.cat([features, features.new_zeros(shape)], dim=axis)


def gated(features: Tensor, weight_B: Tensor) -> Tensor:
    """`features` times one weight an instance; exactly nothing where it is 0. A fresh tensor."""
    return _Gated.apply(features, weight_B)  # type: ignore[no-any-return]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, weight_B: Tensor) -> Tensor:
        weight = _spread(weight_B, features)
        # -0.0 is the identity of IEEE addition: x + -0.0 is x to the bit, also for x = -0.0.
        return torch.where(weight != 0, features * weight, -0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, weight_B = ctx.saved_tensors
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            weight = _spread(weight_B, features)
            grad_features = torch.where(weight != 0, grad * weight, 0.0)
        if ctx.needs_input_grad[1]:
            finite = torch.where(torch.isfinite(features), features, 0.0)
            axes = list(range(1, features.ndim))
            wide = torch.promote_types(features.dtype, weight_B.dtype)
            grad_weight = (grad.to(wide) * finite.to(wide)).sum(dim=axes).to(weight_B.dtype)
        return grad_features, grad_weight


def _spread(weight_B: Tensor, features: Tensor) -> Tensor:
    """(B,) to (B, 1, ..., 1) in the features' dtype."""
    return weight_B.to(features.dtype).reshape(-1, *[1] * (features.ndim - 1))
