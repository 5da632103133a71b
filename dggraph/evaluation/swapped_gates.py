"""Other adjacencies in place of each image's own: the mean one, another image's, the static one.

A first pass records each image's adjacency. A second one repeats every batch with others. Edges may
have a weight for each channel or pixel, too many to keep for every image; the second pass therefore
decides again, for a batch and for the images whose adjacencies it gets.

A network can depend on each image's adjacency without being better than one that has a single
adjacency for all images: compare it with one that was trained so.

Shape suffixes: B images of a batch, M images, E edges of a stage, P all weights of an edge, K
classes.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dggraph.data.image_sets import evenly_spaced
from dggraph.errors import InputError
from dggraph.evaluation.accuracy import own_batches, refuse_other_labels
from dggraph.graph.analysis import Change
from dggraph.network.decisions import refuse_nan
from dggraph.network.gate_contexts import own_thresholds, pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.ops.divergence import divergence
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches, num_samples
from dggraph.system.modes import evaluating

SWAPS = ("mean", "class mean", "same class", "other", "static")

Weights = Mapping[str, Tensor]
"""Per stage (E,), (B, E) or (B, E, P)."""
Key = str | tuple[str, int]


class Images(NamedTuple):
    """Images with labels, read in batches of one order."""

    dataset: Dataset[Any]
    batch_size: int
    workers: int
    device: torch.device

    def read(self, index_M: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images, on the device, and labels; `index_M` says which to read for each image."""
        batches: Sequence[Any] = own_batches(num_samples(self.dataset), self.batch_size)
        if index_M is not None:
            batches = [index_M[batch].tolist() for batch in batches]
        for images, labels in load_batches(self.dataset, batches, workers=self.workers):
            yield images.to(self.device), labels


@dataclass(slots=True)
class Recorded:
    """What the first pass found."""

    weights: dict[str, Tensor]
    """Settled, (M, E) per stage; the mean where an edge has several."""
    raw: dict[str, Tensor]
    """Before the threshold, (M, E) per stage; the largest where an edge has several."""
    sums: dict[int, dict[str, Tensor]]
    """For each class the sum of all weights over its images, (E,) or (E, P) per stage, float64."""
    spreads: dict[str, Tensor]
    """Standard deviation of the weights of each edge in one image, (M, E) per stage."""
    labels_M: Tensor
    kept_M: Tensor
    num_classes: int

    def mean(self, label: int | None = None) -> dict[str, Tensor]:
        """Return the mean weights of the images of a class, or of all, (1, E) or (1, E, P)."""
        if label is not None:
            count = int((self.labels_M == label).sum())
            return {stage: total[None] / count for stage, total in self.sums[label].items()}
        totals = {
            stage: torch.stack([one[stage] for one in self.sums.values()]).sum(0)
            for stage in self.weights
        }
        return {stage: total[None] / len(self.labels_M) for stage, total in totals.items()}


def record(net: DynamicNetwork, images: Images, num_classes: int = 0) -> Recorded:
    """Run `net` on all images as it is; `num_classes` is the least number of classes.

    Raises:
        InputError: a label is not an output of the network.
        GateError: an edge weight is NaN.
    """
    parts: dict[str, list[Tensor]] = {"labels": [], "kept": []}
    weights: dict[str, list[Tensor]] = {stage: [] for stage in net.graph.stages}
    raw: dict[str, list[Tensor]] = {stage: [] for stage in net.graph.stages}
    spreads: dict[str, list[Tensor]] = {stage: [] for stage in net.graph.stages}
    sums: dict[int, dict[str, Tensor]] = {}
    for batch, labels in images.read():
        output, gates = net(batch, return_gates=True)
        num_classes = max(num_classes, output.shape[1])
        refuse_other_labels(labels, output.shape[1])
        parts["labels"].append(labels)
        parts["kept"].append(gates.macs().cpu() / net.macs_table.static)
        for stage in net.graph.stages:
            refuse_nan(net.graph, stage, gates.raw[stage])
            weights[stage].append(gates.mean_weights(stage).cpu())
            raw[stage].append(gates.raw[stage].cpu())
            all_BEP = gates.all_weights(stage)
            spreads[stage].append(_spread(all_BEP).cpu())
            for label in torch.unique(labels).tolist():
                total = all_BEP[(labels == label).to(all_BEP.device)].double().sum(0).cpu()
                of_class = sums.setdefault(label, {})
                of_class[stage] = of_class[stage] + total if stage in of_class else total
    return Recorded(
        {stage: torch.cat(found) for stage, found in weights.items()},
        {stage: torch.cat(found) for stage, found in raw.items()},
        sums,
        {stage: torch.cat(found) for stage, found in spreads.items()},
        torch.cat(parts["labels"]),
        torch.cat(parts["kept"]),
        num_classes,
    )


class Swapped(NamedTuple):
    """One batch of the second pass."""

    images: Tensor
    labels: Tensor
    own: Weights
    others: dict[str, Weights]
    """By the names of swaps."""


def swap(
    net: DynamicNetwork, images: Images, recorded: Recorded, swaps: Sequence[str] = SWAPS
) -> Iterator[Swapped]:
    """Yield every batch with each image's own adjacency, settled, and those in its place.

    The thresholds of `net` have to be its own whenever a batch is asked for.
    """
    partners = {name: one for name, one in _partners(recorded.labels_M).items() if name in swaps}
    mean, static = recorded.mean(), static_weights(net.graph)
    class_means = {
        label: recorded.mean(label) for label in (recorded.sums if "class mean" in swaps else ())
    }
    readers = [images.read(), *(images.read(index_M) for index_M in partners.values())]
    for (batch, labels), *others in zip(*readers, strict=True):
        found: dict[str, Weights] = {"mean": mean, "static": static}
        if class_means:
            found["class mean"] = {
                stage: torch.cat([class_means[label][stage] for label in labels.tolist()])
                for stage in mean
            }
        for name, (other, _) in zip(partners, others, strict=True):
            found[name] = _settled(net, other)
        yield Swapped(batch, labels, _settled(net, batch), {name: found[name] for name in swaps})


class Counts:
    """What the second pass adds up, by the name of a swap, or by stage and edge."""

    def __init__(self) -> None:
        self.num_images = self.num_right = 0
        self.gained: Counter[Key] = Counter()
        self.lost: Counter[Key] = Counter()
        self.divergences: dict[Key, float] = {}

    def swapped(self, net: DynamicNetwork, batch: Swapped) -> Tensor:
        """Count the answers with each adjacency in `batch`; return the own outputs, (B, K)."""
        expected_BK = run_pinned(net, batch.images, batch.own)
        self.num_images += len(batch.images)
        self.num_right += int((expected_BK.argmax(1) == batch.labels).sum())
        for name, weights in batch.others.items():
            output_BK = run_pinned(net, batch.images, weights)
            self.add(name, expected_BK, output_BK, batch.labels)
        return expected_BK

    def add(self, key: Key, expected_BK: Tensor, output_BK: Tensor, labels: Tensor) -> None:
        """Count a batch of own outputs and of outputs with a change."""
        was_B, is_B = expected_BK.argmax(1) == labels, output_BK.argmax(1) == labels
        self.gained[key] += int((is_B & ~was_B).sum())
        self.lost[key] += int((was_B & ~is_B).sum())
        lost = float(divergence(expected_BK, output_BK).sum())
        self.divergences[key] = self.divergences.get(key, 0.0) + lost

    @property
    def accuracy(self) -> float:
        """The accuracy with each image's own adjacency."""
        return self.num_right / self.num_images

    def change(self, key: Key) -> Change:
        """Return what the change `key` did to all images."""
        gained, lost = self.gained[key], self.lost[key]
        return Change(
            accuracy=(self.num_right + gained - lost) / self.num_images,
            gained=gained / self.num_images,
            lost=lost / self.num_images,
            num_images=self.num_images,
        )


def swap_gates(
    net: DynamicNetwork,
    dataset: Dataset[Any],
    *,
    swaps: Sequence[str] = ("mean", "other"),
    limit: int | None = None,
    batch_size: int = 250,
) -> Counts:
    """Evaluate `net` with adjacencies that are not each image's own.

    Args:
        net: a converted network; modes and thresholds are restored.
        dataset: items (image (C, H, W), label) by index.
        swaps: names from `SWAPS`.
        limit: the largest number of images, evenly spaced over the set.
        batch_size: images per batch.

    Raises:
        InputError: there are fewer than two images, or a label is not an output.
        GateError: an edge weight is NaN.
    """
    is_taken = evenly_spaced(num_samples(dataset), limit)
    places = [index for index in range(num_samples(dataset)) if is_taken(index)]
    if len(places) < 2:
        raise InputError(f"{len(places)} images: an adjacency of another image needs at least 2.")
    images = Images(Subset(dataset, places), batch_size, 0, first_weight(net).device)
    counts = Counts()
    with evaluating(net), torch.no_grad():
        for batch in swap(net, images, record(net, images), swaps):
            counts.swapped(net, batch)
    return counts


def run_pinned(net: DynamicNetwork, images: Tensor, weights: Weights) -> Tensor:
    """Run `net` with settled weights, and return its outputs, float64 on the CPU.

    They are 0 where an edge is closed, and a mean is taken as it is, so the threshold is 0.
    """
    with own_thresholds(net):
        net.set_threshold(0)
        with pinned_gates(net, weights):
            output: Tensor = net(images)
    return output.double().cpu()


def _spread(all_BEP: Tensor) -> Tensor:
    """Return the standard deviation of the weights of each edge, (B, E); 0 for one weight."""
    if all_BEP.ndim == 2:
        return torch.zeros_like(all_BEP)
    return all_BEP.flatten(2).std(2, correction=0)


def _settled(net: DynamicNetwork, images: Tensor) -> Weights:
    _, gates = net(images, return_gates=True)
    return {stage: gates.all_weights(stage) for stage in gates.weights}


def _partners(labels_M: Tensor) -> dict[str, Tensor]:
    """Return, per name of a swap, the image whose adjacency each image gets, (M,)."""
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(labels_M), generator=generator)
    by_class = shuffled[labels_M[shuffled].argsort(stable=True)]
    same = torch.arange(len(labels_M))
    for members in torch.split(by_class, labels_M.bincount().tolist()):
        same[members] = _next_in(members)[members.argsort().argsort()] if len(members) else members
    return {"same class": same, "other": _next_in(shuffled)}


def _next_in(cycle: Tensor) -> Tensor:
    """Return for each member of `cycle`, in ascending order, the one after it."""
    return cycle.roll(-1)[cycle.argsort()]
