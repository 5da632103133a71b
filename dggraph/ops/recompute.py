"""Make sums again in the backward pass instead of keeping them: a node's input costs one weighted
sum, its memory a stage-sized tensor.

While `checkpoint_aggregation` is on, a block that saves its input for backward (its first
convolution does) saves how the input was made instead. The features it was made of are kept anyway,
for the gradient of the weights.
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
    """Run the forward pass within this context; backward may come later. Eager mode only: compilers
    plan their own recomputation.
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
    """Note how `total` was made, for as long as the Python object `total` lives and nobody
    overwrites it.
    """
    sums = _sums.get()
    if sums is None:
        return
    kept, weights = [feature.detach() for feature in features], weights_BE.detach()
    versions = [feature._version for feature in kept]

    def remake() -> Tensor:
        if [feature._version for feature in kept] != versions:
            raise GradientError(
                "a feature was overwritten in place after it was aggregated, so the sum cannot be"
                " made again. Run without checkpoint_aggregation(), or do not write to a stage's"
                " tensors."
            )
        with torch.no_grad():
            return weighted_sum(kept, weights)

    sums[id(total)] = (total._version, remake)
    weakref.finalize(total, sums.pop, id(total), None)
