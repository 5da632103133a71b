"""COCO's average precision of predicted boxes, and predictions as COCO's JSON.

faster-coco-eval computes the precision.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from dggraph.detection.readers import BoxImage, BoxSet
from dggraph.errors import InputError, MissingExtraError
from dggraph.graph.detection import Corners, Detection
from dggraph.system.files import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Averages over classes and recalls; None if there is no object to detect."""

    AP: float | None
    """Mean over overlap thresholds from 0.50 to 0.95."""
    AP50: float | None
    AP75: float | None
    small: float | None
    """AP of objects below 32 x 32 pixels."""
    medium: float | None
    large: float | None
    """AP of objects from 96 x 96 pixels."""
    per_class: dict[str, float | None]
    """AP of each class."""

    def row(self) -> dict[str, Any]:
        """Return the values as a JSON object."""
        return asdict(self)


def average_precision(found: Mapping[int, Sequence[Detection]], expected: BoxSet) -> Precision:
    """Return the average precision of predictions, as COCO defines it.

    Up to 100 predictions count for each image. Crowds are neither found nor missed.

    Args:
        found: predictions by `BoxImage.image_id`; images without an entry have no predictions.
        expected: the annotated images.

    Raises:
        MissingExtraError: faster-coco-eval is not installed.
        InputError: a prediction has an unknown image or class, or is not finite.
    """
    library = require_library()
    truth = library.COCO(
        {
            "images": [
                {"id": image.image_id, "width": image.width, "height": image.height}
                for image in expected.images
            ],
            "categories": [
                {"id": label, "name": name} for label, name in enumerate(expected.classes, 1)
            ],
            "annotations": list(_numbered(expected.images)),
        }
    )
    unknown = sorted(set(found) - {image.image_id for image in expected.images})
    if unknown:
        raise InputError(
            f"there are predictions for image {unknown[0]}, which {expected.name} does not have."
        )
    predicted = [
        {
            "image_id": image_id,
            "category_id": one.label + 1,
            "bbox": _size(one.corners),
            "score": one.score,
        }
        for image_id, detections in found.items()
        for one in _checked(detections, expected)
    ]
    evaluator = library.COCOeval_faster(truth, truth.loadRes(predicted), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    # Axes: overlap thresholds, recalls, classes, areas, numbers of predictions.
    precision_TRKAM: np.ndarray[Any, Any] = evaluator.eval["precision"]

    def mean(overlaps: slice, classes: slice, area: int) -> float | None:
        values = precision_TRKAM[overlaps, :, classes, area, -1]
        return float(values[values > -1].mean()) if bool((values > -1).any()) else None

    every = slice(None)
    return Precision(
        AP=mean(every, every, 0),
        AP50=mean(slice(0, 1), every, 0),
        AP75=mean(slice(5, 6), every, 0),
        small=mean(every, every, 1),
        medium=mean(every, every, 2),
        large=mean(every, every, 3),
        per_class={
            name: mean(every, slice(label, label + 1), 0)
            for label, name in enumerate(expected.classes)
        },
    )


def write_predictions(
    file: Path, found: Mapping[int, Sequence[Detection]], expected: BoxSet
) -> None:
    """Write predictions in COCO's result format, with image and category ids of the annotations.

    The file is written completely or not at all.
    """
    rows = [
        {
            "image_id": image_id,
            "category_id": expected.category_ids[one.label],
            "bbox": _size(one.corners),
            "score": one.score,
        }
        for image_id, detections in found.items()
        for one in detections
    ]
    write_whole(file, json.dumps(rows, allow_nan=False).encode())


def require_library() -> Any:
    """Return faster-coco-eval; call this before any work whose result needs it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("faster_coco_eval")
    except ImportError as error:
        raise MissingExtraError(
            "average precision needs faster-coco-eval: pip install 'dggraph[detection]'."
        ) from error


def _numbered(images: Iterable[BoxImage]) -> Iterable[dict[str, Any]]:
    """Yield annotations with ids from 1, because COCO's evaluation takes id 0 for "no match"."""
    number = 0
    for image in images:
        for box in image.boxes:
            number += 1
            yield {
                "id": number, "image_id": image.image_id, "category_id": box.label + 1, "bbox":
                _size(box.corners), "area": box.area,
                "iscrowd": int(box.is_crowd),
            }  # fmt: skip


def _size(corners: Corners) -> list[float]:
    left, top, right, bottom = corners
    return [left, top, right - left, bottom - top]


def _checked(detections: Sequence[Detection], expected: BoxSet) -> Sequence[Detection]:
    for one in detections:
        if not 0 <= one.label < len(expected.classes):
            raise InputError(
                f"a prediction has class {one.label}, but {expected.name} has"
                f" {len(expected.classes)} classes."
            )
        if not np.isfinite([*one.corners, one.score]).all():
            raise InputError(
                f"a prediction is not finite: box {one.corners}, score {one.score}. Check the"
                " network for NaN."
            )
    return detections
