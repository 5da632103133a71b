"""How to run a stage on a batch whose images have several patterns of open edges.

A stage with one router knows every pattern before it runs. There are two ways:

- `groups`: the images of each pattern run as a batch of their own, by its plan (`stage_plans`).
- `rows`: each block runs on the rows of all images that reach it, whatever their patterns.

Both run every block on the same images and compute the same function. They differ in what comes on
top: groups call blocks more often and copy images into groups and out of them, and rows are found
and gathered for every sum. The model adds these costs up, and the cheaper way is chosen. Its five
numbers are fitted to measured times by `benchmarks/cost_model.py`, which also prints the regret:
the time of the chosen way over that of the faster one, less 1.

A third way, running each block on the whole batch and weighting closed edges 0, was measured too.
It was hardly ever the fastest, and then by little, so there is none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

from torch import Tensor

from dggraph.ops import kernels
from dggraph.ops.stage_plans import PatternPlan

Way = Literal["groups", "rows"]
WAYS: tuple[Way, ...] = ("groups", "rows")
_FORCED: ContextVar[Way | None] = ContextVar("forced_way", default=None)
_NOTED: ContextVar[Counter[Way] | None] = ContextVar("noted_ways", default=None)


class BlockSize(NamedTuple):
    """What a call of a block costs, whatever the number of images."""

    num_ops: int
    weights: float
    """Weights that it reads, in thousands; MACs over positions, which is exact for convolutions."""


class Overheads(NamedTuple):
    """What a way does beyond the work on the images; in `RATES`, the microseconds of each."""

    ops: float
    """Calls of ops in blocks."""
    weights: float
    """Weights that these calls read, in thousands."""
    copied: float
    """Elements of features copied into groups and out of them, in thousands."""
    sums: float
    """Sums over gathered rows."""
    gathered: float
    """Elements of these sums, in thousands."""


RATES = {
    "torch": Overheads(ops=19.0, weights=0.76, copied=1.9, sums=280.0, gathered=1.2),
    "kernels": Overheads(ops=11.0, weights=0.33, copied=1.1, sums=57.0, gathered=0.6),
}
"""Measured on a CPU with one thread, by what sums over rows: torch's ops or the C++ kernels."""


def choose_way(
    blocks: Sequence[BlockSize], patterns: Mapping[PatternPlan, int], entry: Tensor
) -> Way:
    """Return the cheaper way to run a batch.

    Args:
        blocks: one for each vertex from 1, without `out`.
        patterns: for each plan, the number of images that take it.
        entry: features of v0, (B, ...), on the CPU.
    """
    forced = _FORCED.get()
    if forced is not None:
        return forced
    rates = RATES["kernels" if kernels.is_usable([entry]) else "torch"]
    num_elements = entry[0].numel()
    costs = {way: predict(overheads(blocks, patterns, num_elements, way), rates) for way in WAYS}
    chosen = min(WAYS, key=costs.__getitem__)
    noted = _NOTED.get()
    if noted is not None:
        noted[chosen] += 1
    return chosen


@contextmanager
def forced_way(way: Way | None) -> Iterator[None]:
    """Within this context, run every batch of several patterns in `way`, to measure it.

    With None the model chooses.
    """
    token = _FORCED.set(way)
    try:
        yield
    finally:
        _FORCED.reset(token)


@contextmanager
def noted_ways() -> Iterator[Counter[Way]]:
    """Within this context, count how often each way is chosen.

    Yields:
        The counts so far, one for each batch of several patterns in each stage.
    """
    noted = Counter[Way]()
    token = _NOTED.set(noted)
    try:
        yield noted
    finally:
        _NOTED.reset(token)


def predict(counts: Overheads, rates: Overheads) -> float:
    """Return the microseconds that `counts` take at `rates`."""
    return sum(number * rate for number, rate in zip(counts, rates, strict=True))


def overheads(
    blocks: Sequence[BlockSize],
    patterns: Mapping[PatternPlan, int],
    num_elements: int,
    way: Way,
) -> Overheads:
    """Return what a batch costs in one way, beyond the work that both ways do.

    Args:
        blocks: one for each vertex from 1, without `out`.
        patterns: for each plan, the number of images that take it.
        num_elements: elements of the features of one image.
        way: how the batch runs.
    """
    called = [one.vertex - 1 for plan in patterns for one in plan.sums[:-1]]
    copied = num_sums = num_rows = 0
    if way == "groups":
        copied = 2 * sum(patterns.values())
    else:
        called = list(set(called))
        num_sums = len(called) + 1
        num_rows = sum(len(plan.sums) * number for plan, number in patterns.items())
    return Overheads(
        ops=sum(blocks[block].num_ops for block in called),
        weights=sum(blocks[block].weights for block in called),
        copied=copied * num_elements / 1e3,
        sums=num_sums,
        gathered=num_rows * num_elements / 1e3,
    )
