"""What a detector finds on each image of a set, how precise that is, and what its backbone spends
there.
"""

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
    """What was found on a whole set, by `BoxImage.image_id`."""

    detections: dict[int, list[Detection]]
    kept: dict[int, float]
    """MACs of the backbone's path over the static backbone's, as they are at the traced size; empty
    where the backbone is static.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionEvaluation:
    """How good a detector is."""

    num_images: int
    precision: Precision
    kept: float | None
    """Mean MACs of the backbone as a fraction of the static backbone's; None where it is static."""

    @property
    def score(self) -> float:
        """AP; -1 where there is nothing to be found."""
        return -1.0 if self.precision.AP is None else self.precision.AP

    def row(self) -> dict[str, Any]:
        """For metrics: precisions, and MACs."""
        row = {"num_images": self.num_images} | self.precision.row()
        return row if self.kept is None else row | {"kept": self.kept}


def evaluate_boxes(found: Found, expected: BoxSet) -> DetectionEvaluation:
    """What `detect` found, against what is there.

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
    """`found` by a detector whose labels are COCO's category ids, as torchvision's trained ones
    have. Ids not in `expected` are dropped.
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
    """What `model` finds, by its own score threshold. The processes share the work, and all get all
    of it.

    Args:
        model: a torchvision detector, its backbone dynamic (`convert_backbone_`) or not; its mode
            is restored.
        dataset: the images.
        batch_size: images at a time.
        workers: loader processes.

    Raises:
        InputError: an image cannot be read, or `model` returns something else than a detector does.
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
    """Outputs, and shares of the backbone's MACs where it was run once on these images."""
    if net is None:
        return model(images), [None] * len(images)
    with collecting_gates(net) as gates:
        outputs = model(images)
    return outputs, (gates[0].macs() / gates[0].table.static).tolist() if len(gates) == 1 else [
        None
    ] * len(images)
