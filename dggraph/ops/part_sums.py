"""Sums of features whose edges have several weights, see `granularity`.

Shape suffixes: B instances, R rows of the result, E edges, P the parts of an edge (several axes).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dggraph.ops.device_copies import to_device
from dggraph.ops.kernels import empty_rows
from dggraph.ops.rows import Places, Weights, take_rows
from dggraph.ops.weighted_sum import masked, with_finite
from dggraph.system.torch_private import has_values


def sum_parts(features: Sequence[Tensor], parts_BEP: Tensor) -> Tensor:
    """Sum `features` from left to right, each scaled part by part; a fresh tensor.

    In the backward pass, x_i receives gradient through active edges only, and every weight that of
    its part, with non-finite elements of x_i taken as 0.

    Args:
        features: E tensors (B, ...) of one shape.
        parts_BEP: broadcasts against the features; all parts of a closed edge are 0.
    """
    return _SumParts.apply(parts_BEP, *features)  # type: ignore[no-any-return]


class _SumParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts_BEP: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(parts_BEP, *features)
        columns = parts_BEP.to(features[0].dtype).unbind(1)
        if not _all_open(parts_BEP):
            total, *others = map(masked, features, columns)
            for term in others:
                total = total + term
            return total
        total = features[0] * columns[0]
        for feature, column in zip(features[1:], columns[1:], strict=True):
            total.addcmul_(feature, column)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts_BEP, *features = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * len(features)
        is_open = _all_open(parts_BEP)
        for edge, column in enumerate(parts_BEP.to(grad.dtype).unbind(1)):
            if ctx.needs_input_grad[1 + edge]:
                grads[edge] = grad * column if is_open else masked(grad, column)
        grad_parts = None
        if ctx.needs_input_grad[0]:
            products_of = partial(_products, grad=grad, shape=parts_BEP.shape[2:])
            grad_parts = with_finite(products_of, features).to(parts_BEP.dtype)
        return grad_parts, *grads


def sum_rows_of_parts(
    features: Sequence[Tensor | None],
    places_RE: Places | None,
    weights_RE: Weights,
    parts_REP: Tensor,
) -> Tensor:
    """Compute `rows.sum_rows` for edges with several weights. Closed edges are left out.

    Args:
        features: for each edge (rows of its source, ...), or None where no instance reached it; not
            all may be None.
        places_RE: row numbers, or None where every source has the same R instances.
        weights_RE: 0 where an edge is closed.
        parts_REP: all weights after `close_parts`.
    """
    total: Tensor | None = None
    like = next(feature for feature in features if feature is not None)
    for edge, feature in enumerate(features):
        rows = np.flatnonzero(weights_RE[:, edge])
        if feature is None or not len(rows):
            continue
        places = None if places_RE is None else places_RE[:, edge]
        parts_RP = parts_REP[:, edge].to(feature.dtype)
        if len(rows) == len(weights_RE):
            term = take_rows(feature, places) * parts_RP
            total = term if total is None else total.add_(term)
            continue
        taken = take_rows(feature, rows if places is None else places[rows])
        index = to_device(torch.from_numpy(rows), feature.device)
        if total is None:
            total = empty_rows(len(weights_RE), like, like.dtype).fill_(-0.0)
        total.index_add_(0, index, taken * parts_RP[index])
    return empty_rows(len(weights_RE), like, like.dtype).zero_() if total is None else total


def _all_open(parts_BEP: Tensor) -> bool:
    """Whether no weight is 0, as far as this can be known without waiting for a device."""
    return parts_BEP.device.type == "cpu" and has_values(parts_BEP) and bool(parts_BEP.all())


def _products(features: Sequence[Tensor], grad: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the sum of features[e] * grad over all axes that are 1 in `shape`, (B, E, *shape)."""
    axes = [axis for axis, size in enumerate(shape, start=1) if size == 1]
    wide = torch.promote_types(grad.dtype, torch.float32)
    products = []
    for feature in features:
        product = feature.to(wide) * grad.to(wide)
        products.append(product.sum(axes, keepdim=True) if axes else product)
    return torch.stack(products, 1)
