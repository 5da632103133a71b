"""The arithmetic of aggregation without gradients: weighted sums and inner products.

Shape suffixes: B instances, E edges. Weights are per instance and edge; 0 means that the edge
contributes exactly nothing, even where its source holds inf or NaN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dggraph.ops import device_kernels, kernels
from dggraph.ops.rows import sum_rows

LARGE_INSTANCE = 1 << 16


def weighted_sum(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """Return sum_e weights[:, e] * features[e], added from left to right, as a fresh tensor.

    Where kernels are used, and on the CPU, closed edges cost nothing.

    Args:
        features: E tensors (B, ...) of one shape.
        weights_BE: 0 where an edge is inactive.
    """
    if device_kernels.is_usable(features):
        return device_kernels.sum_rows(features, None, weights_BE.detach())
    if features[0].device.type != "cpu":
        return masked_sum(features, weights_BE)
    known = weights_BE.detach()
    return sum_rows(
        features,
        None,
        (known.float() if known.dtype == torch.bfloat16 else known).numpy(),
        may_alias=False,
    )


def masked_sum(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """Compute `weighted_sum` as one expression.

    It serves compilers, and devices on which reading the weights would force a synchronisation.
    """
    total, *others = [masked(feature, weights_BE[:, edge]) for edge, feature in enumerate(features)]
    for term in others:
        total = total + term
    return total


def masked(feature: Tensor, weight_B: Tensor) -> Tensor:
    """Scale `feature` (B, ...) by one weight per instance; weight 0 gives exactly nothing."""
    weight = expand_weight(weight_B, feature)
    # -0.0 is the identity of IEEE addition: x + -0.0 is bitwise x, also for x = -0.0.
    return torch.where(weight != 0, feature * weight, -0.0)


def inner_products(features: Sequence[Tensor], grad: Tensor) -> Tensor:
    """Return <features[e], grad> of each instance, (B, E), in float32 or wider.

    Non-finite elements of the features are taken as 0.
    """
    if kernels.is_usable([*features, grad]):
        return kernels.inner_products(features, grad)
    if device_kernels.is_usable([*features, grad]):
        return device_kernels.inner_products(features, grad)
    wide = torch.promote_types(grad.dtype, torch.float32)
    products = torch.stack([_inner_product(feature, grad, wide) for feature in features], dim=1)
    if grad.device.type == "cpu" and bool(products.isfinite().all()):
        return products
    finite = [torch.where(torch.isfinite(feature), feature, 0.0) for feature in features]
    return torch.stack(
        [(feature.to(wide) * grad.to(wide)).flatten(1).sum(1) for feature in finite], dim=1
    )


def expand_weight(weight_B: Tensor, feature: Tensor) -> Tensor:
    """Reshape (B,) to (B, 1, ..., 1), in the feature's dtype."""
    return weight_B.to(feature.dtype).reshape(-1, *[1] * (feature.ndim - 1))


def _inner_product(feature: Tensor, grad: Tensor, wide: torch.dtype) -> Tensor:
    size = feature[:1].numel()
    if (
        feature.device.type == "cpu"
        and feature.dtype == grad.dtype == wide
        and size >= LARGE_INSTANCE
    ):
        # One instance at a time stays in the cache, and `dot` stores no product.
        pairs = zip(feature.reshape(-1, size), grad.reshape(-1, size), strict=True)
        return torch.stack([torch.dot(one, other) for one, other in pairs])
    return (feature.to(wide) * grad.to(wide)).flatten(1).sum(1)
