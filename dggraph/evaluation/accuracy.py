"""Accuracy and MACs of a network on a labelled set, in integer counts.

Each batch is evaluated by one process as a whole, so the counts do not depend on the number of
processes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from dggraph.errors import InputError
from dggraph.network.cost import entropy_bits, path_keys
from dggraph.network.decisions import refuse_nan
from dggraph.network.network import DynamicNetwork
from dggraph.system import processes
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches, num_samples
from dggraph.system.modes import evaluating

PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Counts over a set."""

    num_images: int
    top1: int
    """Images whose best class is the right one."""
    top5: int
    """Images whose right class is among the best five."""
    class_images: tuple[int, ...]
    """Images of each class."""
    class_top1: tuple[int, ...]
    """Images of each class whose best class is the right one."""
    kept: float | None
    """Mean MACs ratio; None for a static network."""
    kept_percentiles: dict[int, float] | None
    """The 5th, 25th, 50th, 75th and 95th percentile of the images' MACs ratios."""
    num_paths: int | None
    """The number of distinct paths."""
    path_entropy_bits: float | None
    """Entropy of the distribution of paths."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, from 0 to 1."""
        return self.top1 / self.num_images

    @property
    def score(self) -> int:
        """The number of top-1 hits, which ranks checkpoints."""
        return self.top1

    def row(self) -> dict[str, Any]:
        """Return accuracies, counts and paths for the metrics file."""
        counts = {
            "num_images": self.num_images,
            "top1": self.top1,
            "top5": self.top5,
            "accuracy": self.accuracy,
        }
        if self.kept is None:
            return counts
        return counts | {
            "kept": self.kept,
            "num_paths": self.num_paths,
            "path_entropy_bits": self.path_entropy_bits,
        }


def evaluate(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Accuracy:
    """Run `model` over `dataset` in eval mode and count; modes are restored.

    Args:
        model: a converted network, or a static one.
        dataset: items (image (C, H, W), label) by index.
        batch_size: images per batch.
        workers: number of loader processes.
        progress: called with the number of images run by this process, and of all that it runs.

    Raises:
        InputError: the set is empty, or a label is not a class of the model.
        GateError: an edge weight is NaN.
    """
    num_images = num_samples(dataset)
    if num_images == 0:
        raise InputError("there are no images to evaluate on; the set is empty.")
    batches = own_batches(num_images, batch_size)
    device = first_weight(model).device
    paths: Counter[bytes] = Counter()
    counts = torch.zeros(2, dtype=torch.int64)
    per_class: torch.Tensor | None = None
    macs = [torch.zeros(0, dtype=torch.float64)]
    num_done, num_own = 0, sum(map(len, batches))
    with evaluating(model):
        for images, labels in load_batches(dataset, batches, workers=workers):
            if isinstance(model, DynamicNetwork):
                output, gates = model(images.to(device), return_gates=True)
                for stage, raw_BE in gates.raw.items():
                    refuse_nan(model.graph, stage, raw_BE)
                paths.update(path_keys(gates))
                macs.append(gates.macs().cpu())
            else:
                output = model(images.to(device))
            logits = output.cpu()
            num_classes = logits.shape[1]
            refuse_other_labels(labels, num_classes)
            best = logits.topk(min(5, num_classes), dim=1).indices
            is_right_B = best[:, 0] == labels
            counts += torch.tensor(
                [int(is_right_B.sum()), int((best == labels[:, None]).any(1).sum())]
            )
            per_class = (
                torch.zeros((2, num_classes), dtype=torch.int64) if per_class is None else per_class
            )
            per_class[0] += labels.bincount(minlength=num_classes)
            per_class[1] += labels[is_right_B].bincount(minlength=num_classes)
            num_done += len(images)
            progress(num_done, num_own)
    width = max(
        w
        for w in processes.all_gather_objects(0 if per_class is None else per_class.shape[1])
        if isinstance(w, int)
    )
    per_class = processes.all_reduce_sum(
        torch.zeros((2, width), dtype=torch.int64) if per_class is None else per_class
    )
    counts, all_macs = (
        processes.all_reduce_sum(counts),
        _joined(processes.all_gather_objects(torch.cat(macs))),
    )
    merged: Counter[bytes] = Counter()
    for part in processes.all_gather_objects(paths):
        assert isinstance(part, Counter)
        merged.update(part)
    static = model.macs_table.static if isinstance(model, DynamicNetwork) else None
    return Accuracy(
        num_images=num_images,
        top1=int(counts[0]),
        top5=int(counts[1]),
        class_images=tuple(per_class[0].tolist()),
        class_top1=tuple(per_class[1].tolist()),
        kept=float(all_macs.sum()) / num_images / static if static is not None else None,
        kept_percentiles=_percentiles(all_macs / static) if static is not None else None,
        num_paths=len(merged) if static is not None else None,
        path_entropy_bits=entropy_bits(merged) if static is not None else None,
    )


def refuse_other_labels(labels_B: torch.Tensor, num_outputs: int) -> None:
    """Raise InputError if a label is not the index of an output."""
    if int(labels_B.min()) < 0 or int(labels_B.max()) >= num_outputs:
        raise InputError(
            f"there are labels from {int(labels_B.min())} to {int(labels_B.max())}, but the model"
            f" has {num_outputs} outputs, and labels count from 0; set num_classes."
        )


def own_batches(num_images: int, batch_size: int) -> list[list[int]]:
    """Return the batches of this process as lists of indices.

    Processes take complete batches in turn, so the contents of a batch do not depend on their
    number.
    """
    starts = range(processes.rank() * batch_size, num_images, processes.world_size() * batch_size)
    return [list(range(start, min(start + batch_size, num_images))) for start in starts]


def _joined(parts: list[object]) -> torch.Tensor:
    """Concatenate the MACs of all images.

    They are integers with a sum below 2 ** 53, so the mean does not depend on their order.
    """
    return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])


def _percentiles(kept_B: torch.Tensor) -> dict[int, float]:
    return dict(zip(PERCENTILES, np.percentile(kept_B.numpy(), PERCENTILES).tolist(), strict=True))
