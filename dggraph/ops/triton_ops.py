"""The Triton kernels as torch operations, with their gradient.

Importing this module imports triton; `device_kernels` decides whether to.

Shape suffixes: R rows of the result, B instances, E edges, C blocks of a row.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from dggraph.ops.kernels import edge_gradients, empty_rows
from dggraph.ops.triton_kernels import (
    BLOCK,
    GROUP,
    NUM_WARPS,
    flow_kernel,
    flow_warps,
    product_kernel,
    sum_kernel,
)


@triton_op("dggraph::triton_sum_rows", mutates_args={})
def sum_rows(features: Sequence[Tensor], places_RE: Tensor | None, weights_RE: Tensor) -> Tensor:
    """Compute `rows.sum_rows` on the device, for features of one dtype and one row shape.

    Args:
        features: E tensors (rows of the source, ...).
        places_RE: int64, or None where every source has the R rows of the result. The place of a
            closed edge is not read; that of an open edge is not checked.
        weights_RE: 0 where an edge is closed.
    """
    total = empty_rows(weights_RE.shape[0], features[0], features[0].dtype)
    if total.numel() == 0:
        return total
    size = total.numel() // total.shape[0]
    rows = [_laid_out(feature, total) for feature in features]
    for first in range(0, len(rows), GROUP):
        sources = rows[first : first + GROUP]
        weights = weights_RE[:, first:]
        places = None if places_RE is None else places_RE[:, first:]
        wrap_triton(sum_kernel)[(total.shape[0] * triton.cdiv(size, BLOCK),)](
            total,
            *_padded(sources),
            weights,
            places,
            size,
            len(sources),
            weights.stride(0),
            weights.stride(1),
            0 if places is None else places.stride(0),
            0 if places is None else places.stride(1),
            NUM_SOURCES=triton.next_power_of_2(len(sources)),
            CONTINUES=first > 0,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return total


def _remember(
    ctx: Any, inputs: tuple[Sequence[Tensor], Tensor | None, Tensor], output: Tensor
) -> None:
    features, places_RE, weights_RE = inputs
    ctx.save_for_backward(places_RE, weights_RE, *features)


def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, Tensor]:
    places_RE, weights_RE, *features = ctx.saved_tensors
    pairs = [
        edge_gradients(
            feature, None if places_RE is None else places_RE[:, edge], weights_RE[:, edge], grad
        )
        for edge, feature in enumerate(features)
    ]
    return [one for one, _ in pairs], None, torch.stack([one for _, one in pairs], dim=1)


sum_rows.register_autograd(_backward, setup_context=_remember)


@triton_op("dggraph::triton_inner_products", mutates_args={})
def inner_products(features: Sequence[Tensor], grad: Tensor) -> Tensor:
    """Compute `weighted_sum.inner_products` on the device, (B, E) in float32.

    Blocks are added up by a second reduction in a fixed order, so that results repeat to the bit.
    """
    num_rows, num_edges = grad.shape[0], len(features)
    if grad.numel() == 0:
        return grad.new_zeros((num_rows, num_edges), dtype=torch.float32)
    size = grad.numel() // num_rows
    num_blocks = triton.cdiv(size, BLOCK)
    layout = empty_rows(1, features[0], features[0].dtype)
    rows, flow = [_laid_out(feature, layout) for feature in features], _laid_out(grad, layout)
    parts_RCE = grad.new_empty((num_rows, num_blocks, num_edges), dtype=torch.float32)
    for first in range(0, num_edges, GROUP):
        sources = rows[first : first + GROUP]
        wrap_triton(product_kernel)[(num_rows * num_blocks,)](
            parts_RCE,
            *_padded(sources),
            flow,
            size,
            first,
            len(sources),
            num_edges,
            NUM_SOURCES=triton.next_power_of_2(len(sources)),
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )
    return parts_RCE.sum(1)


@triton_op("dggraph::triton_sum_and_products", mutates_args={})
def sum_and_products(
    grads: Sequence[Tensor], weights_BE: Tensor, feature: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `weighted_sum.sum_and_products` on the device, in one pass over the gradients."""
    num_rows, num_edges = feature.shape[0], len(grads)
    total = empty_rows(num_rows, feature, feature.dtype)
    if total.numel() == 0:
        return total, feature.new_zeros((num_rows, num_edges), dtype=torch.float32)
    size = total.numel() // num_rows
    num_blocks = triton.cdiv(size, BLOCK)
    rows, read = [_laid_out(grad, total) for grad in grads], _laid_out(feature, total)
    parts_RCE = feature.new_empty((num_rows, num_blocks, num_edges), dtype=torch.float32)
    for first in range(0, num_edges, GROUP):
        sources = rows[first : first + GROUP]
        num_sources = triton.next_power_of_2(len(sources))
        weights = weights_BE[:, first:]
        wrap_triton(flow_kernel)[(num_rows * num_blocks,)](
            total,
            parts_RCE,
            *_padded(sources),
            read,
            weights,
            size,
            first,
            len(sources),
            num_edges,
            weights.stride(0),
            weights.stride(1),
            NUM_SOURCES=num_sources,
            CONTINUES=first > 0,
            BLOCK=BLOCK,
            num_warps=flow_warps(num_sources, is_half=feature.dtype == torch.float16),
        )
    return total, parts_RCE.sum(1)


def _laid_out(value: Tensor, layout: Tensor) -> Tensor:
    """Return `value` itself if its rows lie in memory as those of `layout`, else a copy."""
    if value.stride() == layout.stride():
        return value
    sizes = zip(value.shape, value.stride(), layout.stride(), strict=True)
    if all(size == 1 or ours == theirs for size, ours, theirs in sizes):
        return value
    return empty_rows(value.shape[0], layout, layout.dtype).copy_(value)


def _padded(sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Repeat the first source up to `GROUP`; the kernels do not read the repetitions."""
    return (*sources, *[sources[0]] * (GROUP - len(sources)))
