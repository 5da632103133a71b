"""Recompute weighted sums in the backward pass instead of storing them.

A node's input costs one weighted sum to compute, and a stage-sized tensor to store. Within
`checkpoint_aggregation`, a block that saves its input for the backward pass (its first convolution
does) saves a recipe for that input instead. The features in the sum are stored anyway, for the
gradient of the weights.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from dggraph.errors import GradientError
from dggraph.ops.weighted_sum import weighted_sum

Remake = Callable[[], Tensor]

_sums: ContextVar[dict[int, tuple[int, Remake]] | None] = ContextVar("sums", default=None)


@contextmanager
def checkpoint_aggregation() -> Iterator[None]:
    """Recompute aggregation sums of the forward passes within this context.

    The backward pass may run outside it. Eager mode only: compilers plan their own recomputation.
    """
    sums: dict[int, tuple[int, Remake]] = {}

    def pack(tensor: Tensor) -> Tensor | Remake:
        version, remake = sums.get(id(tensor), (-1, None))
        return tensor if remake is None or tensor._version != version else remake

    def unpack(packed: Tensor | Remake) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    token = _sums.set(sums)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _sums.reset(token)


def remember(total: Tensor, features: Sequence[Tensor], weights_BE: Tensor) -> None:
    """Record how to recompute `total`, as long as it is alive and not overwritten."""
    sums = _sums.get()
    if sums is None:
        return
    kept, weights = [feature.detach() for feature in features], weights_BE.detach()
    versions = [feature._version for feature in kept]

    def remake() -> Tensor:
        if [feature._version for feature in kept] != versions:
            raise GradientError(
                "a feature was overwritten in place after aggregation, so the sum cannot be"
                " recomputed. Run without checkpoint_aggregation(), or do not write to a stage's"
                " tensors in place."
            )
        with torch.no_grad():
            return weighted_sum(kept, weights)

    sums[id(total)] = (total._version, remake)
    weakref.finalize(total, sums.pop, id(total), None)
