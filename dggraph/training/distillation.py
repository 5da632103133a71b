"""Distillation: learning from the outputs of a trained static network, without labels.

The teacher is the unchanged backbone. In evaluation its predictions replace labels, so that
accuracy is agreement with the teacher. Blocks that it cannot do without are found by leaving out
each one (`sensitivity`), and can be pinned open.

Shape suffixes: B instances, K classes.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from dggraph.data.image_sets import evenly_spaced
from dggraph.data.sampler import SeededDataset
from dggraph.evaluation.accuracy import own_batches
from dggraph.evaluation.sensitivity import measure_sensitivity
from dggraph.network.network import DynamicNetwork
from dggraph.system import processes
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches, num_samples
from dggraph.system.modes import evaluating

SENSITIVITY_IMAGES = 256
"""Number of evenly spaced training images, enough to separate essential blocks from others."""


class _Answered(Dataset[tuple[Tensor, int]]):
    """A data set with a given label for each image."""

    def __init__(self, images: Dataset[Any], answers: Sequence[int]) -> None:
        self.images, self.answers = images, answers

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index][0], self.answers[index]


def teacher_of(model: nn.Module) -> nn.Module:
    """Return a frozen copy of `model` in eval mode."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def answered(
    teacher: nn.Module, dataset: Dataset[Any], *, batch_size: int, workers: int
) -> Dataset[Any]:
    """Return `dataset` labelled with the teacher's best classes; the processes share the work.

    Args:
        teacher: the teacher, in eval mode.
        dataset: items (image (C, H, W), anything) by index.
        batch_size: images per batch.
        workers: number of loader processes.
    """
    num_images = num_samples(dataset)
    device = first_weight(teacher).device
    mine: dict[int, int] = {}
    batches = own_batches(num_images, batch_size)
    with evaluating(teacher):
        for places, (images, _) in zip(
            batches, load_batches(dataset, batches, workers=workers), strict=True
        ):
            mine |= zip(places, teacher(images.to(device)).argmax(1).tolist(), strict=True)
    every = dict(processes.all_gather_items(list(mine.items())))
    return _Answered(dataset, [every[place] for place in range(num_images)])


def find_fragile(
    net: DynamicNetwork,
    images: Dataset[Any],
    limit: float,
    *,
    seed: int,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """Find the blocks whose removal changes the static network's outputs by more than `limit`.

    Args:
        net: a converted network.
        images: items (image, anything) by index; up to 256 of them are used, as in the first epoch.
        limit: mean KL divergence in nats.
        seed: seed of the run.
        batch_size: images per batch.
        workers: number of loader processes.

    Returns:
        The findings as JSON: the measurements of every block, and the names of those to pin.

    Raises:
        InputError: as for `measure_sensitivity`.
    """
    num_images = num_samples(images)
    is_taken = evenly_spaced(num_images, SENSITIVITY_IMAGES)
    taken = Subset(
        SeededDataset(images, seed),
        [(0, index) for index in range(num_images) if is_taken(index)],  # type: ignore[misc]
    )
    costs = measure_sensitivity(
        net, taken, has_labels=False, batch_size=batch_size, workers=workers
    )
    fragile = [block.node for block in costs.blocks if not block.divergence <= limit]
    return {
        "num_images": costs.num_images,
        "limit": limit,
        "pinned": fragile,
        "blocks": [asdict(block) for block in costs.blocks],
    }
