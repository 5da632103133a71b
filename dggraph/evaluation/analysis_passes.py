"""The second pass of an analysis: other thresholds, other adjacencies, and each edge closed.

Where an adjacency is pinned, routers decide nothing, so the other edges stay as they were.

Shape suffixes: B images of a batch, K classes.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from dggraph.evaluation.swapped_gates import (
    Counts,
    Images,
    Recorded,
    Swapped,
    Weights,
    run_pinned,
    swap,
)
from dggraph.network.gate_contexts import own_thresholds, pinned_gates
from dggraph.network.network import DynamicNetwork

THRESHOLDS = tuple(place / 10 for place in range(10))


class ThresholdCounts(dict[float, tuple[int, float]]):
    """For each threshold, the number of right images and the sum of MACs ratios."""

    def add(self, net: DynamicNetwork, batch: Swapped, own: float) -> None:
        """Count a batch at `THRESHOLDS`, and at the network's own."""
        with own_thresholds(net):
            for threshold in sorted({*THRESHOLDS, own}):
                net.set_threshold(threshold)
                output, gates = net(batch.images, return_gates=True)
                right, kept = self.get(threshold, (0, 0.0))
                self[threshold] = (
                    right + int((output.cpu().argmax(1) == batch.labels).sum()),
                    kept + float(gates.macs().sum()) / net.macs_table.static,
                )


def compare(
    net: DynamicNetwork,
    images: Images,
    recorded: Recorded,
    own: float,
    progress: Callable[[int], None],
) -> tuple[Counts, ThresholdCounts]:
    """Run every batch with changed adjacencies, and at other thresholds.

    `own` is the threshold of `net`, and `progress` is called with the number of images done.
    """
    counts, thresholds = Counts(), ThresholdCounts()
    ever_open = {stage: (one != 0).any(0).tolist() for stage, one in recorded.weights.items()}
    for batch in swap(net, images, recorded):
        thresholds.add(net, batch, own)
        expected_BK = counts.swapped(net, batch)
        for stage, is_ever_open in ever_open.items():
            for edge, is_open in enumerate(is_ever_open):
                output_BK = expected_BK
                if is_open:
                    closed = batch.own[stage].clone()
                    closed[:, edge] = 0
                    output_BK = run_pinned(net, batch.images, {**batch.own, stage: closed})
                counts.add((stage, edge), expected_BK, output_BK, batch.labels)
        progress(counts.num_images)
    return counts, thresholds


def growths_of(net: DynamicNetwork, images: Tensor, pinned: Weights | None) -> dict[str, float]:
    """Return for each stage the norm of its output over that of its entry, on `images`."""
    watch = _Norms(net)
    with pinned_gates(net, pinned or {}):
        watch.run(images)
    return {plan.name: watch.norms[plan.output] / watch.norms[plan.entry] for plan in net.plan}


class _Norms(fx.Interpreter):
    """Runs the lowered graph and records the norms of what enters and leaves the stages."""

    def __init__(self, net: DynamicNetwork) -> None:
        super().__init__(net.lowered)
        self.watched = {name for plan in net.plan for name in (plan.entry, plan.output)}
        self.norms: dict[str, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.watched:
            self.norms[n.name] = max(float(result.double().norm()), 1e-30)
        return result
