"""Evaluate a detector on a set: its predictions, their precision, and its backbone's MACs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from dggraph.detection.average_precision import Precision, average_precision
from dggraph.detection.box_data import BoxDataset, collate
from dggraph.detection.detectors import FIRST_CLASS, read_boxes
from dggraph.detection.readers import BoxSet
from dggraph.evaluation.accuracy import own_batches
from dggraph.graph.detection import Detection
from dggraph.network.gate_contexts import collecting_gates
from dggraph.network.network import DynamicNetwork, dynamic_part
from dggraph.system import processes
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches
from dggraph.system.modes import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Predictions on an entire set, by `BoxImage.image_id`."""

    detections: dict[int, list[Detection]]
    kept: dict[int, float]
    """MACs ratio of the backbone's path to the static backbone, at the traced size.

    Empty if the backbone is static.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionEvaluation:
    """The precision of a detector and the MACs of its backbone."""

    num_images: int
    precision: Precision
    kept: float | None
    """Mean MACs ratio of the backbone to the static backbone; None if it is static."""

    @property
    def score(self) -> float:
        """AP, or -1 if there is no object to detect."""
        return -1.0 if self.precision.AP is None else self.precision.AP

    def row(self) -> dict[str, Any]:
        """Return a row of metrics: precisions and MACs ratio."""
        row = {"num_images": self.num_images} | self.precision.row()
        return row if self.kept is None else row | {"kept": self.kept}


def evaluate_boxes(found: Found, expected: BoxSet) -> DetectionEvaluation:
    """Return the precision of the predictions that `detect` returned.

    Raises:
        InputError: as for `average_precision`.
    """
    shares = found.kept.values()
    mean = sum(shares) / len(shares) if shares else None
    return DetectionEvaluation(
        num_images=len(expected.images),
        precision=average_precision(found.detections, expected),
        kept=mean,
    )


def by_category(found: Found, expected: BoxSet) -> Found:
    """Return predictions with COCO's category ids as predictions with the classes of `expected`.

    torchvision's trained detectors have these ids as labels. Ids not in `expected` are dropped.
    """
    place = {number - FIRST_CLASS: label for label, number in enumerate(expected.category_ids)}
    renumbered = {
        image_id: [replace(one, label=place[one.label]) for one in detections if one.label in place]
        for image_id, detections in found.detections.items()
    }
    return replace(found, detections=renumbered)


def detect(
    model: nn.Module, dataset: BoxDataset, *, batch_size: int = 8, workers: int = 0
) -> Found:
    """Return the predictions of `model` above its own score threshold.

    The processes share the work, and each gets all predictions.

    Args:
        model: a torchvision detector with a dynamic backbone (`convert_backbone_`) or a static one;
            its mode is restored.
        dataset: the images.
        batch_size: number of images in a batch.
        workers: number of loader processes.

    Raises:
        InputError: an image cannot be read, or `model` does not return what a detector returns.
    """
    net = dynamic_part(model)
    device = first_weight(model).device
    mine: list[tuple[int, list[Detection], float | None]] = []
    with evaluating(model):
        for images, targets in load_batches(
            dataset, own_batches(len(dataset), batch_size), workers=workers, collate=collate
        ):
            outputs, shares = _run(model, net, [image.to(device) for image in images])
            for target, output, share in zip(targets, outputs, shares, strict=True):
                mine.append((int(target["image_id"]), read_boxes(output), share))
    every = processes.all_gather_items(mine)
    return Found(
        detections={image_id: detections for image_id, detections, _ in every},
        kept={image_id: share for image_id, _, share in every if share is not None},
    )


def _run(
    model: nn.Module, net: DynamicNetwork | None, images: list[Tensor]
) -> tuple[Any, Sequence[float | None]]:
    """Return the outputs, and MACs ratios of the backbone if it ran once on these images."""
    if net is None:
        return model(images), [None] * len(images)
    with collecting_gates(net) as gates:
        outputs = model(images)
    return outputs, (gates[0].macs() / gates[0].table.static).tolist() if len(gates) == 1 else [
        None
    ] * len(images)
