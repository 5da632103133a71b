"""The arithmetic of aggregation without gradients: weighted sums and inner products.

Shape suffixes: B instances, E edges. Weights are per instance and edge; 0 means that the edge
contributes exactly nothing, even where its source holds inf or NaN.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dggraph.ops import device_kernels, kernels
from dggraph.ops.rows import sum_rows
from dggraph.system.devices import outside_autocast
from dggraph.system.torch_private import has_values


def weighted_sum(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """Return sum_e weights[:, e] * features[e], added from left to right, as a fresh tensor.

    Where kernels are used, and on the CPU, closed edges cost nothing.

    Args:
        features: E tensors (B, ...) of one shape.
        weights_BE: 0 where an edge is inactive.
    """
    if device_kernels.is_usable(features):
        return device_kernels.sum_rows(features, None, weights_BE.detach())
    if features[0].device.type != "cpu" or not has_values(features[0]):
        return masked_sum(features, weights_BE)
    known = weights_BE.detach()
    # 16-bit sums must round after each term; the kernels round once
    if features[0].dtype.itemsize >= 4 and kernels.is_usable(features):
        return kernels.weighted_sum(features, known)
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
    """Scale `feature` (B, ...) by weights, see `expand_weight`; weight 0 gives exactly nothing."""
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
    return _products([(feature, grad) for feature in features])


def products_with(grads: Sequence[Tensor], feature: Tensor) -> Tensor:
    """Return <feature, grads[e]> of each instance, (B, E), in float32 or wider.

    Non-finite elements of the feature are taken as 0.
    """
    if feature.device.type != "cpu":
        return torch.cat([inner_products([feature], grad) for grad in grads], dim=1)
    return _products([(feature, grad) for grad in grads])


def sum_and_products(
    grads: Sequence[Tensor], weights_BE: Tensor, feature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `weighted_sum(grads, weights_BE)` and `products_with(grads, feature)`.

    Kernels need one pass over the gradients for both.
    """
    # 16-bit sums must round after each term; the kernels round once
    if feature.dtype.itemsize >= 4 and kernels.is_usable([*grads, feature]):
        return kernels.sum_and_products(grads, weights_BE, feature)
    if device_kernels.is_usable([*grads, feature]):
        return device_kernels.sum_and_products(grads, weights_BE, feature)
    return weighted_sum(grads, weights_BE), products_with(grads, feature)


def with_finite(
    products_of: Callable[[Sequence[Tensor]], Tensor], features: Sequence[Tensor]
) -> Tensor:
    """Return `products_of(features)`, with non-finite elements of the features taken as 0.

    On the CPU a finite result is final. Elsewhere looking at it would mean to wait.
    """
    if features[0].device.type == "cpu":
        products = products_of(features)
        if bool(products.isfinite().all()):
            return products
    return products_of([torch.where(one.isfinite(), one, 0.0) for one in features])


def expand_weight(weight_B: Tensor, feature: Tensor) -> Tensor:
    """Return `weight_B` in the feature's dtype, (B,) as (B, 1, ..., 1); others broadcast."""
    weight = weight_B.to(feature.dtype)
    return weight.reshape(-1, *[1] * (feature.ndim - 1)) if weight.ndim == 1 else weight


def _products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return <feature, grad> of each instance for each pair, (B, pairs), non-finite ones as 0."""
    features, grads = zip(*pairs, strict=True)

    def products_of(features: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(map(_inner_product, features, grads)), dim=1)

    return with_finite(products_of, features)


def _inner_product(feature: Tensor, grad: Tensor) -> Tensor:
    """Return <feature, grad> of each instance, (B,)."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    if feature.device.type == "cpu" and feature.dtype == grad.dtype == wide and feature.numel():
        # stores no product, unlike `(feature * grad).sum()`
        pair = (feature, grad)
        if all(_is_channels_last(one) for one in pair):
            pair = (feature.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1))  # no copies
        rows, others = (one.reshape(len(one), 1, -1) for one in pair)
        with outside_autocast("cpu"):  # `bmm` would round
            return torch.bmm(rows, others.transpose(1, 2)).reshape(-1)
    return (feature.to(wide) * grad.to(wide)).flatten(1).sum(1)


def _is_channels_last(value: Tensor) -> bool:
    return value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
