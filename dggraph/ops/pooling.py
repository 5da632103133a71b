"""What routers read of features: means and deviations of channels, in at least float32."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from dggraph.ops.aggregation import is_plain

EPSILON = 1e-6
"""Added under square roots, for features that do not vary or are all zero."""


def pool(features: Tensor, axes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the mean of `features` over `axes`, in `dtype`.

    In eager mode the gradient is an expanded view of a small tensor, while that of `Tensor.mean`
    would be as large as the features.
    """
    if is_plain() or not (torch.is_grad_enabled() and features.requires_grad):
        return features.mean(dim=list(axes), dtype=dtype)
    return _Pool.apply(features, tuple(axes), dtype)  # type: ignore[no-any-return]


def mean_channels(features: Tensor, channel_axis: int, dtype: torch.dtype) -> Tensor:
    """Return the mean of each channel of `features` (B, ...), (B, C), in `dtype`."""
    axes = position_axes(features, channel_axis)
    return pool(features, axes, dtype) if axes else features.to(dtype)


def deviation(features: Tensor, channel_axis: int, dtype: torch.dtype) -> Tensor:
    """Return the standard deviation of each channel, (B, C); 0.001 where all values are equal."""
    axes = position_axes(features, channel_axis)
    wide = features.to(dtype)
    if not axes:
        return torch.full_like(wide, EPSILON**0.5)
    return (wide.var(dim=axes, correction=0) + EPSILON).sqrt()


def normalised(values: Tensor, axis: int = 1) -> Tensor:
    """Return `values` divided by their root mean square over `axis`."""
    return values * inverse_rms(values, axis)


def inverse_rms(values: Tensor, axis: int) -> Tensor:
    """Return 1 over the root mean square of `values` over `axis`, which stays as an axis of 1."""
    return torch.rsqrt(values.square().mean(axis, keepdim=True) + EPSILON)


def position_axes(features: Tensor, channel_axis: int) -> list[int]:
    """Return the axes of `features` (B, ...) apart from the batch and the channels."""
    return [axis for axis in range(1, features.ndim) if axis != channel_axis % features.ndim]


class _Pool(torch.autograd.Function):
    # `forward` takes the context: with `setup_context`, each call inspects the signature (85 us).
    @staticmethod
    def forward(ctx: Any, features: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        ctx.axes, ctx.shape, ctx.dtype = axes, features.shape, features.dtype
        return features.mean(dim=axes, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        kept = [1 if axis in ctx.axes else size for axis, size in enumerate(ctx.shape)]
        num_pooled = prod(ctx.shape[axis] for axis in ctx.axes)
        return (grad / num_pooled).to(ctx.dtype).reshape(kept).expand(ctx.shape), None, None
