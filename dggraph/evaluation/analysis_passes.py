"""The passes of an analysis: own adjacencies recorded, then every batch with others.

Where an adjacency is pinned, routers decide nothing, so the other edges stay as they were.

Shape suffixes: B images of a batch, M images, E edges of a stage, K classes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dggraph.errors import InputError
from dggraph.graph.analysis import Change
from dggraph.network.decisions import refuse_nan
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.ops.divergence import divergence

THRESHOLDS = tuple(place / 10 for place in range(10))
SWAPS = ("mean", "class mean", "same class", "other", "static")

Weights = Mapping[str, Tensor]
Key = str | tuple[str, int]


@dataclass(slots=True)
class Recorded:
    """What the first pass found."""

    weights: dict[str, Tensor]
    """Settled, (M, E) per stage; the mean where an edge has several."""
    pins: dict[str, Tensor]
    """The same, but with all weights of each edge: (M, E), or (M, E, P)."""
    raw: dict[str, Tensor]
    labels_M: Tensor
    kept_M: Tensor
    num_classes: int


def record(
    net: DynamicNetwork, batches: Iterator[tuple[Tensor, Tensor]], num_classes: int
) -> Recorded:
    """Run `net` on all batches of images and labels as it is.

    Raises:
        InputError: a label is not an output of the network.
        GateError: an edge weight is NaN.
    """
    parts: dict[str, list[Tensor]] = {"labels": [], "kept": []}
    weights: dict[str, list[Tensor]] = {stage: [] for stage in net.graph.stages}
    raw: dict[str, list[Tensor]] = {stage: [] for stage in net.graph.stages}
    pins: dict[str, list[Tensor]] = {stage: [] for stage in net.graph.stages}
    num_outputs = num_classes
    for images, labels in batches:
        output, gates = net(images, return_gates=True)
        num_outputs = max(num_outputs, output.shape[1])
        if int(labels.min()) < 0 or int(labels.max()) >= output.shape[1]:
            raise InputError(
                f"a label is {int(labels.max())}, but the model has {output.shape[1]} outputs; set"
                " num_classes."
            )
        parts["labels"].append(labels)
        parts["kept"].append(gates.macs().cpu() / net.macs_table.static)
        for stage in net.graph.stages:
            refuse_nan(net.graph, stage, gates.raw[stage])
            weights[stage].append(gates.mean_weights(stage).cpu())
            pins[stage].append(gates.all_weights(stage).cpu())
            raw[stage].append(gates.raw[stage].cpu())
    return Recorded(
        {stage: torch.cat(found) for stage, found in weights.items()},
        {stage: torch.cat(found) for stage, found in pins.items()},
        {stage: torch.cat(found) for stage, found in raw.items()},
        torch.cat(parts["labels"]),
        torch.cat(parts["kept"]),
        num_outputs,
    )


class Counts:
    """What the second pass adds up, by the name of a swap, or by stage and edge."""

    def __init__(self) -> None:
        self.num_images = self.num_right = 0
        self.gained: Counter[Key] = Counter()
        self.lost: Counter[Key] = Counter()
        self.divergences: dict[Key, float] = {}
        self.thresholds: dict[float, tuple[int, float]] = {}
        """For each, the number of right images and the sum of MACs ratios."""

    def add(self, key: Key, expected_BK: Tensor, output_BK: Tensor, labels: Tensor) -> None:
        """Count a batch of own outputs and of outputs with a change."""
        was_B, is_B = expected_BK.argmax(1) == labels, output_BK.argmax(1) == labels
        self.gained[key] += int((is_B & ~was_B).sum())
        self.lost[key] += int((was_B & ~is_B).sum())
        lost = float(divergence(expected_BK, output_BK).sum())
        self.divergences[key] = self.divergences.get(key, 0.0) + lost

    def change(self, key: Key) -> Change:
        """Return what the change `key` did to all images."""
        gained, lost = self.gained[key], self.lost[key]
        return Change(
            accuracy=(self.num_right + gained - lost) / self.num_images,
            gained=gained / self.num_images,
            lost=lost / self.num_images,
            num_images=self.num_images,
        )


def compare(
    net: DynamicNetwork,
    batches: Iterator[tuple[Tensor, Tensor]],
    recorded: Recorded,
    own: float,
    progress: Callable[[int], None],
) -> Counts:
    """Run every batch with changed adjacencies, and at other thresholds.

    The thresholds of `net` are 0 afterwards. `own` is the threshold that it had.
    """
    counts, swapped = Counts(), _swapped(net, recorded)
    ever_open = {
        stage: (pins.flatten(2) if pins.ndim > 2 else pins[:, :, None]).ne(0).any(2).any(0)
        for stage, pins in recorded.pins.items()
    }
    for images, labels in batches:
        place = slice(counts.num_images, counts.num_images + len(images))
        mine = {stage: pins[place] for stage, pins in recorded.pins.items()}
        for threshold in sorted({*THRESHOLDS, own}):
            net.set_threshold(threshold)
            output, gates = net(images, return_gates=True)
            right, kept = counts.thresholds.get(threshold, (0, 0.0))
            counts.thresholds[threshold] = (
                right + int((output.cpu().argmax(1) == labels).sum()),
                kept + float(gates.macs().sum()) / net.macs_table.static,
            )
        # settled weights are 0 where an edge is closed, and a mean is taken as it is
        net.set_threshold(0)
        expected_BK = _pinned(net, images, mine)
        counts.num_images += len(images)
        counts.num_right += int((expected_BK.argmax(1) == labels).sum())
        for name, weights in swapped.items():
            others = {stage: one[place] for stage, one in weights.items()}
            counts.add(name, expected_BK, _pinned(net, images, others), labels)
        for stage, is_ever_open in ever_open.items():
            for edge in range(len(is_ever_open)):
                output_BK = expected_BK
                if is_ever_open[edge]:
                    closed = mine[stage].clone()
                    closed[:, edge] = 0
                    output_BK = _pinned(net, images, mine | {stage: closed})
                counts.add((stage, edge), expected_BK, output_BK, labels)
        progress(counts.num_images)
    return counts


def _pinned(net: DynamicNetwork, images: Tensor, weights: Weights) -> Tensor:
    with pinned_gates(net, weights):
        output: Tensor = net(images)
    return output.double().cpu()


def _swapped(net: DynamicNetwork, recorded: Recorded) -> dict[str, dict[str, Tensor]]:
    """Return the adjacencies in place of each image's own, per name and stage (M, E)."""
    labels_M = recorded.labels_M
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(labels_M), generator=generator)
    other = _next_in(shuffled)
    by_class = shuffled[labels_M[shuffled].argsort(stable=True)]
    same = torch.arange(len(labels_M))
    for members in torch.split(by_class, labels_M.bincount().tolist()):
        same[members] = _next_in(members)[members.argsort().argsort()] if len(members) else members
    static = static_weights(net.graph)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in SWAPS}
    for stage, pins in recorded.pins.items():
        means_KE = torch.stack(
            [pins[labels_M == label].mean(0) for label in range(int(labels_M.max()) + 1)]
        )
        found["mean"][stage] = pins.mean(0).expand_as(pins)
        found["class mean"][stage] = means_KE[labels_M]
        found["same class"][stage] = pins[same]
        found["other"][stage] = pins[other]
        found["static"][stage] = static[stage].to(pins).expand(len(pins), -1)
    return found


def _next_in(cycle: Tensor) -> Tensor:
    """Return for each member of `cycle`, in ascending order, the one after it."""
    return cycle.roll(-1)[cycle.argsort()]


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
