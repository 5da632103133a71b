"""Calibration: find the threshold for each MACs target on held-out images.

One threshold serves all stages. A threshold changes which nodes are live, hence what later routers
see, hence other weights, so one pass is not enough. Each threshold is measured in actual use. The
mean MACs ratio need not fall smoothly, or everywhere, as the threshold rises.

1. Measure five thresholds.
2. For each target, find two neighbours of which one keeps more and one keeps less, and measure
   between them.
3. Repeat until every target has a point within 0.002, or its neighbours are 1/1024 apart. One pass
   over the images serves all targets.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from dggraph.errors import InputError
from dggraph.network.budgets import BudgetCurve, BudgetPoint, choose
from dggraph.network.cost import iterate_gates
from dggraph.network.gate_contexts import own_thresholds
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted

START = (0.0, 0.25, 0.5, 0.75, 1 - 2**-7)
"""The first thresholds.

The last one is safely below 1 in bfloat16; at 1 the backbone's own edges would close.
"""
PRECISION = 0.002
RESOLUTION = 2**-10


def calibrate(
    net: DynamicNetwork,
    batches: Iterable[Any],
    *,
    targets: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5),
) -> BudgetCurve:
    """Measure which threshold keeps which share of the MACs, for `net.set_budget`.

    The curve is stored as `net.budgets`. The network runs in eval mode without gradients, with its
    own executor; thresholds and modes are restored. Calibration only moves along the trade-off that
    training has learned: a threshold calibrated on a network that was trained without one destroys
    it. Check the accuracy.

    Args:
        net: a converted network, trained with `losses.budget` or at least with its threshold.
        batches: held-out images (B, C, H, W), or tuples that begin with them, as a list or a
            loader, since they are read several times.
        targets: mean MACs as fractions of the static network's.

    Returns:
        The curve, and for each target the threshold, what it really keeps, and whether that meets
        the budget.

    Raises:
        InputError: there are no stages or no images, `batches` is an iterator that can be read
            once, or a target is not a positive number.
        GateError: an edge weight is NaN.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> curve = dggraph.calibrate(net, [torch.rand(4, 3, 32, 32)], targets=(1.0,))
        >>> curve.num_instances
        4
    """
    require_converted(net, "calibrate")
    if not net.graph.stages:
        raise InputError(
            "this network has no stages, so no threshold changes its MACs; there is nothing to"
            " calibrate."
        )
    if isinstance(batches, Iterator):
        raise InputError(
            "calibrate reads the images once per round, and this iterator is used up after one."
            " Pass a list or a DataLoader."
        )
    if not targets or not all(0 < target < math.inf for target in targets):
        raise InputError(
            f"targets={tuple(targets)}: pass at least one positive fraction of the static network's"
            " MACs, for example 0.7."
        )
    measured: dict[float, float] = {}
    wanted: Sequence[float] = START
    num_instances = 0
    with own_thresholds(net):
        while wanted:
            kept, num_instances = _measure(net, batches, wanted)
            measured |= dict(zip(wanted, kept, strict=True))
            points = tuple(
                BudgetPoint(threshold=threshold, kept=measured[threshold])
                for threshold in sorted(measured)
            )
            between = (_between(points, target) for target in targets)
            wanted = sorted({threshold for threshold in between if threshold is not None})
    budgets = tuple(choose(points, target) for target in targets)
    net.budgets = BudgetCurve(num_instances=num_instances, points=points, budgets=budgets)
    return net.budgets


def _measure(
    net: DynamicNetwork, batches: Iterable[Any], thresholds: Sequence[float]
) -> tuple[list[float], int]:
    """Return the mean MACs ratio at each threshold, and the number of instances.

    Every batch is read once.
    """

    def replay() -> Iterator[Any]:
        for batch in batches:
            for threshold in thresholds:
                net.set_threshold(threshold)
                yield batch

    totals, counts = [0.0] * len(thresholds), [0] * len(thresholds)
    for index, gates in enumerate(iterate_gates(net, replay())):
        macs_B = gates.macs()
        totals[index % len(thresholds)] += float(macs_B.sum())
        counts[index % len(thresholds)] += len(macs_B)
    return [
        total / count / net.macs_table.static for total, count in zip(totals, counts, strict=True)
    ], counts[0]


def _between(points: Sequence[BudgetPoint], target: float) -> float | None:
    """Return the next threshold to measure for `target`, or None if there is nothing to gain."""
    if min(abs(point.kept - target) for point in points) <= PRECISION:
        return None
    for low, high in pairwise(points):
        if (
            min(low.kept, high.kept) < target < max(low.kept, high.kept)
            and high.threshold - low.threshold > RESOLUTION
        ):
            return (low.threshold + high.threshold) / 2
    return None
