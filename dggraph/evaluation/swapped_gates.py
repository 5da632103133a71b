"""What each image's own adjacency is worth: accuracy with the mean one, and with another image's.

A network can depend on each image's adjacency without being better than one that has a single
adjacency for all images: compare it with one that was trained so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dggraph.data.image_sets import evenly_spaced
from dggraph.errors import InputError
from dggraph.network.gate_contexts import own_thresholds, pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches, num_samples
from dggraph.system.modes import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class SwappedAccuracy:
    """Top-1 accuracies from 0 to 1, over the same images."""

    num_images: int
    own: float
    """With each image's own adjacency."""
    mean: float
    """With the mean adjacency of all images; an edge with a mean of 0 or less is closed."""
    other: float
    """With the adjacency of another image."""


def swap_gates(
    net: DynamicNetwork,
    dataset: Dataset[Any],
    *,
    limit: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> SwappedAccuracy:
    """Evaluate `net` with adjacencies that are not each image's own.

    Args:
        net: a converted network; modes and thresholds are restored.
        dataset: items (image (C, H, W), label) by index.
        limit: the largest number of images, evenly spaced over the set.
        batch_size: images per batch.
        seed: seed of the order in which an image gets the adjacency of the one before it.

    Raises:
        InputError: there are fewer than two images.
    """
    is_taken = evenly_spaced(num_samples(dataset), limit)
    places = [index for index in range(num_samples(dataset)) if is_taken(index)]
    if len(places) < 2:
        raise InputError(f"{len(places)} images: an adjacency of another image needs at least 2.")
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if len(batches[-1]) == 1:  # that image would be its own neighbour
        batches[-2:] = [batches[-2] + batches[-1]]
    images = Subset(dataset, places)
    device = first_weight(net).device
    sums: dict[str, Any] = {}
    right = {"own": 0, "mean": 0, "other": 0}
    with evaluating(net):
        for batch, labels in load_batches(images, batches, workers=0):
            output, gates = net(batch.to(device), return_gates=True)
            weights = {stage: gates.all_weights(stage) for stage in gates.weights}
            for stage, weight in weights.items():
                sums[stage] = sums.get(stage, 0) + weight.double().sum(0)
            rolled = {stage: weight.roll(1, 0) for stage, weight in weights.items()}
            right["own"] += _num_right(output, labels)
            right["other"] += _num_right(_pinned(net, batch.to(device), rolled), labels)
        means = {stage: (total / len(places)).float()[None] for stage, total in sums.items()}
        for batch, labels in load_batches(images, batches, workers=0):
            right["mean"] += _num_right(_pinned(net, batch.to(device), means), labels)
    shares = {name: count / len(places) for name, count in right.items()}
    return SwappedAccuracy(num_images=len(places), **shares)


def _pinned(net: DynamicNetwork, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Run with given weights; a closed edge has weight 0, so no other threshold is needed."""
    with own_thresholds(net):
        net.set_threshold(0)
        with pinned_gates(net, weights):
            output: Tensor = net(images)
            return output


def _num_right(output: Tensor, labels: Tensor) -> int:
    return int((output.argmax(1).cpu() == labels).sum())
