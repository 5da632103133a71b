"""Aggregation of the features that reach a node, with its gradient in pull form.

A node reads the weighted sum (or concatenation) of its sources. An edge of weight 0 contributes
exactly nothing, even where its source holds inf or NaN. Every result is a fresh tensor, because the
first op of a block may overwrite it.

The backward pass of a stage caches each adjacency column with the gradient of its node:

1. `aggregate` of node j stores dz_j and its adjacency column in the stage's `Cache`. It returns
   nothing for the features.
2. Autograd reaches `weigh` (or `collect`) and `share` of node i once all consumers of i are done.
   The first of them pulls dx_i = sum_j A_ij dz_j, a weighted sum like that of the forward pass, and
   dA_ij = <x_i, dz_j> in the same pass over all dz_j. There is no gradient tensor per edge.

Written here because torch's own sum, `einsum` of the stacked features, needs four times the memory.
Compilers, exporters and functorch see a plain expression instead, which has the same gradient.

Shape suffixes: B instances, E incoming edges.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from dggraph.errors import GradientError
from dggraph.ops.part_sums import sum_parts
from dggraph.ops.recompute import remember
from dggraph.ops.stage_cache import Cache, Reading
from dggraph.ops.weighted_sum import expand_weight, inner_products, masked, weighted_sum
from dggraph.system.torch_private import is_in_functorch, is_jit_traced

_plain = ContextVar("plain_aggregation", default=False)


@contextmanager
def plain_aggregation() -> Iterator[None]:
    """Use the plain expression within this context: slower, but twice differentiable."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def share(features: Tensor, cache: Cache, index: int) -> Tensor:
    """Return `features` of node `index` for its consumers, and collect their gradients here.

    The values are unchanged. Without gradients, or in plain form, this is `features` itself.
    """
    if is_plain() or not (torch.is_grad_enabled() and features.requires_grad):
        return features
    cache.shared.add(index)
    return _Share.apply(features, cache, index)  # type: ignore[no-any-return]


def aggregate(
    features: Sequence[Tensor],
    weights_BE: Tensor,
    cache: Cache | None = None,
    sources: Sequence[int | None] = (),
    target: int = 0,
    through: Sequence[Tensor] = (),
) -> Tensor:
    """Sum `features` from left to right, each scaled per instance.

    Weight 1 is exact: with one open edge of weight 1, the result is bitwise identical to that
    feature.

    Args:
        features: E tensors (B, ...) of one shape.
        weights_BE: one weight per instance and edge; 0 means inactive. Where edges have several,
            (B, E, ...), see `granularity`; these use neither cache nor `through`.
        cache: the stage's cache; without one, the plain expression is used.
        sources: for each feature, the index under which it was shared, or None if it was changed on
            its way (by an adapter).
        target: index of the node that reads the sum.
        through: results of `weigh` or `collect` that the weights were taken from; these collect the
            weights' gradients. Without them, `weights_BE` gets its gradient here.

    Returns:
        A fresh (B, ...) tensor. In the backward pass, x_i receives gradient through active edges
        only. Every weight receives dA_ij = <dz_j, x_i>, with non-finite elements of x_i taken as 0,
        so that a closed edge can open again.
    """
    if weights_BE.ndim > 2 and not is_plain():
        return sum_parts(features, weights_BE)
    if is_plain() or (cache is None and torch.is_grad_enabled()):
        total, *others = [
            gated(feature, weights_BE[:, edge]) for edge, feature in enumerate(features)
        ]
        for term in others:
            total = total + term
        return total
    if not torch.is_grad_enabled():
        return weighted_sum(features, weights_BE)
    if through:
        weights_BE = weights_BE.detach()
    summed: Tensor = _Aggregate.apply(
        cache, tuple(sources), target, weights_BE, *features, *through
    )
    remember(summed, features, weights_BE)
    return summed


def concatenate(features: Sequence[Tensor], weights_BE: Tensor, channel_axis: int) -> Tensor:
    """Concatenate `features` along `channel_axis`, each scaled per instance.

    A closed edge contributes zeros.
    """
    return torch.cat(
        [gated(x, weights_BE[:, edge]) for edge, x in enumerate(features)], dim=channel_axis
    )


def adapt(features: Tensor, num_channels: int, channel_axis: int) -> Tensor:
    """Pad with zero channels, or crop, to `num_channels` along `channel_axis`."""
    axis = channel_axis % features.ndim
    missing = num_channels - features.shape[axis]
    if missing <= 0:
        return features.narrow(axis, 0, num_channels)
    return torch.nn.functional.pad(
        features, [0, 0] * (features.ndim - 1 - axis) + [0, missing]
    )  # keeps channels last


def gated(features: Tensor, weight_B: Tensor) -> Tensor:
    """Scale `features` (B, ...) by weights; weight 0 gives exactly 0.

    The weights are (B,), or broadcast against the features. The result is a fresh tensor.
    """
    if is_jit_traced():  # a trace that calls a Python autograd function cannot be saved
        return masked(features, weight_B)
    return _Gated.apply(features, weight_B)  # type: ignore[no-any-return]


def is_plain() -> bool:
    """Whether aggregation must be a plain expression, without Python bookkeeping.

    This holds within compilers, exporters, functorch and `plain_aggregation`.
    """
    return torch.compiler.is_compiling() or _plain.get() or is_jit_traced() or is_in_functorch()


def refuse_double_backward() -> None:
    """Raise if the current backward pass is to be differentiated itself."""
    if torch.is_grad_enabled():
        raise GradientError(
            "aggregation in pull form has no second derivative, and backward ran with"
            " create_graph=True. Run the forward pass within"
            " dggraph.ops.aggregation.plain_aggregation()."
        )


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, cache: Cache, index: int) -> Tensor:
        ctx.cache, ctx.index, ctx.dtype = cache, index, features.dtype
        ctx.set_materialize_grads(False)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:
        refuse_double_backward()
        flow = ctx.cache.flow(ctx.index)
        if flow is None:
            return grad, None, None
        if grad is not None:
            flow.add_(grad)
        return flow.to(ctx.dtype), None, None


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        cache: Cache,
        sources: tuple[int | None, ...],
        target: int,
        weights_BE: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        features = inputs[: len(sources)]
        ctx.cache, ctx.sources, ctx.target = cache, sources, target
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weights_BE, *features)
        return weighted_sum(features, weights_BE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        weights_BE, *features = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 4)
        if grad is None:
            return None, None, None, None, *grads
        columns = weights_BE.unbind(1)
        for edge, (source, feature) in enumerate(zip(ctx.sources, features, strict=True)):
            needs_flow = ctx.needs_input_grad[4 + edge]
            if source is None:
                grads[edge] = masked(grad, columns[edge]).to(feature.dtype) if needs_flow else None
            elif needs_flow or source in ctx.cache.collected:
                ctx.cache.put(source, ctx.target, Reading(grad, columns[edge], feature))
        grad_weights = (
            inner_products(features, grad).to(weights_BE.dtype) if ctx.needs_input_grad[3] else None
        )
        return None, None, None, grad_weights, *grads


class _Gated(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, weight_B: Tensor) -> Tensor:
        return masked(features, weight_B)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, weight_B = ctx.saved_tensors
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            weight = expand_weight(weight_B, grad)
            grad_features = torch.where(weight != 0, grad * weight, 0.0)
        if ctx.needs_input_grad[1]:
            finite = torch.where(torch.isfinite(features), features, 0.0)
            wide = torch.promote_types(features.dtype, weight_B.dtype)
            shape = expand_weight(weight_B, features).shape
            axes = [axis for axis in range(1, features.ndim) if shape[axis] == 1]
            products = grad.to(wide) * finite.to(wide)
            summed = products.sum(dim=axes) if axes else products
            grad_weight = summed.reshape(weight_B.shape).to(weight_B.dtype)
        return grad_features, grad_weight
