"""The arithmetic of aggregation, without gradients: weighted sums over edges, and inner products with what flows back.

Shape suffixes: B instances, E edges. Weights are per instance and edge; 0 means that the edge contributes exactly nothing, even where its
source holds inf or nan.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

LARGE_INSTANCE = 1 << 16


def weighted_sum(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """sum_e weights[:, e] * features[e], left to right, as a fresh tensor laid out like the first open feature.

    On the CPU edges that are closed for the whole batch cost nothing, and the others one pass each into one output. Where instances
    differ, 0 * x is added; should that leave something that is not finite, the sum is made again with masks.

    Args:
        features: E tensors (B, ...) of one shape.
        weights_BE: 0 where an edge is inactive.
    """
    if features[0].device.type != "cpu":
        return masked_sum(features, weights_BE)
    dtype = reduce(torch.promote_types, (feature.dtype for feature in features))
    is_open_BE = weights_BE != 0
    used = [edge for edge, is_used in enumerate(is_open_BE.any(0).tolist()) if is_used]
    if not used:
        return torch.zeros_like(features[0], dtype=dtype)
    first, *others = used
    total = torch.empty_like(features[first], dtype=dtype)
    torch.mul(features[first], spread(weights_BE[:, first], features[first]), out=total)
    for edge in others:
        total.addcmul_(features[edge], spread(weights_BE[:, edge], features[edge]))
    if bool(is_open_BE[:, used].all()) or bool(total.sum(dtype=torch.promote_types(dtype, torch.float32)).isfinite()):
        return total
    return masked_sum(features, weights_BE)


def masked_sum(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """The same as one expression, for compilers and devices where looking at values would wait."""
    total, *others = [masked(feature, weights_BE[:, edge]) for edge, feature in enumerate(features)]
    for term in others:
        total = total + term
    return total


def masked(feature: Tensor, weight_B: Tensor) -> Tensor:
    """`feature` times one weight an instance; exactly nothing where it is 0."""
    weight = spread(weight_B, feature)
    # -0.0 is the identity of IEEE addition: x + -0.0 is x to the bit, also for x = -0.0.
    return torch.where(weight != 0, feature * weight, -0.0)


def inner_products(features: Sequence[Tensor], grad: Tensor) -> Tensor:
    """(B, E): <features[e], grad> of each instance, non-finite elements of the features taken as 0; float32 or wider."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    products = torch.stack([_inner_product(feature, grad, wide) for feature in features], dim=1)
    if grad.device.type == "cpu" and bool(products.isfinite().all()):
        return products
    finite = [torch.where(torch.isfinite(feature), feature, 0.0) for feature in features]
    return torch.stack([(feature.to(wide) * grad.to(wide)).flatten(1).sum(1) for feature in finite], dim=1)


def spread(weight_B: Tensor, feature: Tensor) -> Tensor:
    """(B,) to (B, 1, ..., 1) in the feature's dtype."""
    return weight_B.to(feature.dtype).reshape(-1, *[1] * (feature.ndim - 1))


def _inner_product(feature: Tensor, grad: Tensor, wide: torch.dtype) -> Tensor:
    size = feature[:1].numel()
    if feature.device.type == "cpu" and feature.dtype == grad.dtype == wide and size >= LARGE_INSTANCE:
        # One instance at a time stays in the cache, and `dot` writes no product.
        pairs = zip(feature.reshape(-1, size), grad.reshape(-1, size), strict=True)
        return torch.stack([torch.dot(one, other) for one, other in pairs])
    return (feature.to(wide) * grad.to(wide)).flatten(1).sum(1)
