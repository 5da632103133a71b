"""Edge weights whose gradients are collected where a router decided them.

`aggregate` leaves the gradient of its node in the stage's cache, and no gradient for its weights.
`weigh` and `collect` stand between the gate and the adjacency columns: in the backward pass they
take dA of their edges from the cache, once all readers are done.

Shape suffixes: B instances, E edges.
"""

from typing import Any

import torch
from torch import Tensor

from dggraph.ops.aggregation import is_plain, refuse_double_backward
from dggraph.ops.liveness import Topology, drop_edges
from dggraph.ops.stage_cache import Cache


def weigh(
    raw_BE: Tensor,
    live_B: Tensor | None,
    threshold: Tensor,
    training: bool,
    cache: Cache | None,
    source: int,
    targets: tuple[int, ...],
) -> Tensor:
    """Apply the threshold to the edges that leave one node; those of a dead node are closed.

    It is `open_edges` for one row of the adjacency matrix.

    Args:
        raw_BE: bounded weights from the node's gate.
        live_B: whether the node is live, bool, or None for the entry, which is always live.
        threshold: 0-d, not negative. NaN weights stay open and visible.
        training: straight-through: the gradient also passes dropped edges of a live node.
        cache: the stage's cache, or None if the edges' readers compute the gradients.
        source: index of the node.
        targets: for each edge, the index of the node that it enters.

    Returns:
        (B, E), 0 where an edge is inactive.
    """
    live_B1 = None if live_B is None else live_B[:, None]
    if cache is None or is_plain() or not (torch.is_grad_enabled() and raw_BE.requires_grad):
        return drop_edges(raw_BE, live_B1, threshold, training)
    cache.collected.add(source)
    return _Weigh.apply(raw_BE, live_B1, threshold, training, cache, source, targets)  # type: ignore[no-any-return]


def collect(weights_BE: Tensor, cache: Cache, topology: Topology) -> Tensor:
    """Return `weights_BE` of all edges of a stage, and collect their gradients here.

    The values are unchanged. Without gradients, or in plain form, this is `weights_BE` itself.
    """
    if is_plain() or not (torch.is_grad_enabled() and weights_BE.requires_grad):
        return weights_BE
    cache.collected.update(topology.sources)
    return _Collect.apply(weights_BE, cache, topology)  # type: ignore[no-any-return]


class _Weigh(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        raw_BE: Tensor,
        live_B1: Tensor | None,
        threshold: Tensor,
        training: bool,
        cache: Cache,
        source: int,
        targets: tuple[int, ...],
    ) -> Tensor:
        ctx.cache, ctx.source, ctx.targets = cache, source, targets
        ctx.set_materialize_grads(False)
        weights_BE = drop_edges(raw_BE, live_B1, threshold, False)
        # where the gradient passes; None for everywhere
        ctx.save_for_backward(live_B1 if training else weights_BE != 0)
        return weights_BE

    @staticmethod
    def backward(ctx: Any, grad_BE: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        (passes,) = ctx.saved_tensors
        total_BE = _sum(grad_BE, ctx.cache.products(ctx.source, ctx.targets))
        if total_BE is not None and passes is not None:
            total_BE = torch.where(passes, total_BE, 0.0)
        return total_BE, None, None, None, None, None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights_BE: Tensor, cache: Cache, topology: Topology) -> Tensor:
        ctx.cache, ctx.topology = cache, topology
        ctx.set_materialize_grads(False)
        return weights_BE.view_as(weights_BE)

    @staticmethod
    def backward(ctx: Any, grad_BE: Tensor | None) -> tuple[Tensor | None, None, None]:
        refuse_double_backward()
        topology = ctx.topology
        columns: list[Tensor | None] = [None] * len(topology.targets)
        for source, edges in enumerate(topology.outgoing()[:-1]):
            targets = tuple(topology.targets[edge] for edge in edges)
            products_BE = ctx.cache.products(source, targets)
            if products_BE is not None:
                for edge, product_B in zip(edges, products_BE.unbind(1), strict=True):
                    columns[edge] = product_B
        found = [column_B for column_B in columns if column_B is not None]
        if not found:
            return grad_BE, None, None
        nothing = torch.zeros_like(found[0])
        products_BE = torch.stack([nothing if one is None else one for one in columns], dim=1)
        return _sum(grad_BE, products_BE), None, None


def _sum(grad_BE: Tensor | None, products_BE: Tensor | None) -> Tensor | None:
    if grad_BE is None or products_BE is None:
        return products_BE if grad_BE is None else grad_BE
    return grad_BE + products_BE
