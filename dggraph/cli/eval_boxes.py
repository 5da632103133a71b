"""`dggraph eval` of a detector: COCO's average precision, and what its backbone spends."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.networks import warn_of_random
from dggraph.cli.options import make_folder, refuse_answered, working
from dggraph.cli.tables import show
from dggraph.errors import InputError
from dggraph.training.config import read_config

if TYPE_CHECKING:
    import torch

    from dggraph.detection.readers import BoxSet
    from dggraph.training.config import TrainConfig

BOX_SETS = ("coco", "voc")
BUILT = ("checkpoint", "pretrained", "num_classes", "input_size", "max_size")


def evaluate_boxes(
    model: str,
    given: dict[str, Any],
    backbone: str | None,
    *,
    limit: int | None,
    predictions: Path | None,
    device: "torch.device | None",
    as_json: bool,
) -> None:
    """Evaluate a detector on the validation part of a set of boxes.

    Args:
        model: the folder of a run, or what a `TrainConfig` takes as its model.
        given: keys of a `TrainConfig` that flags gave; where `model` is a run, those of the data
            only, and the run says the others.
        backbone: what builds the detector of a run, where that is code.
        limit: at most so many images, evenly spread.
        predictions: a JSON file to write, as COCO's servers take it.
        device: where it runs; None for a GPU where there is one.
        as_json: print one document.

    Raises:
        InputError: as for `open_validation_boxes`, `build_detector` and `evaluate_boxes`.
    """
    from dggraph.data.image_sets import evenly_spaced
    from dggraph.detection.average_precision import require_library, write_predictions
    from dggraph.detection.box_data import BoxDataset
    from dggraph.detection.box_sets import refuse_other_categories
    from dggraph.detection.evaluation import by_category, detect, evaluate_boxes
    from dggraph.detection.registry import detector_names
    from dggraph.system import processes
    from dggraph.training.detector_runs import build_detector, is_detector_run, open_detector

    require_library()
    if predictions is not None:
        make_folder(predictions.parent)
    given = {key: value for key, value in given.items() if value is not None}
    with processes.computing_on(device), processes.process_group():
        with working(f"Loading {model}"):
            is_run = is_detector_run(model)
            if is_run:
                refuse_answered(
                    f"a run: {model} has it in its config.json.",
                    **{key: given.get(key) for key in BUILT},
                )
                detector = open_detector(model, backbone)
                if ":" in detector.config.dataset and "dataset" not in given:
                    raise InputError(
                        f"the data set of {model} is code, {detector.config.dataset!r}, which is"
                        " run only where you name it."
                    )
                keys = detector.config.model_copy(update=given)
                expected = open_named(keys)
                refuse_other_categories(detector.classes, "this detector", expected)
            else:
                if backbone is not None:
                    raise click.UsageError(f"--backbone goes with a run, and {model} is none.")
                keys = read_config(
                    None, {"model": model, "task": "detection", "router": "none"} | given
                )
                expected = open_named(keys)
                if keys.num_classes is None and model in detector_names():
                    keys = keys.model_copy(update={"num_classes": max(expected.category_ids)})
                detector = build_detector(keys, expected.classes)
        is_taken = evenly_spaced(len(expected.images), limit)
        expected = replace(
            expected,
            images=tuple(image for place, image in enumerate(expected.images) if is_taken(place)),
        )
        processes.assert_same_on_all_ranks(
            {"images": len(expected.images), "classes": expected.classes}
        )
        how: Any = {"batch_size": keys.evaluation_batch_size, "workers": keys.workers}
        with working("Detecting"):
            start = time.perf_counter()
            found = detect(
                detector.model.to(processes.device()), BoxDataset(expected.images), **how
            )
            seconds = time.perf_counter() - start
        if processes.rank() != 0:
            return
        has_ids = not is_run and (keys.num_classes or len(expected.classes)) != len(
            expected.classes
        )
        if has_ids:
            found = by_category(found, expected)
        if predictions is not None:
            write_predictions(predictions, found.detections, expected)
        document = {
            "model": model,
            "dataset": keys.dataset,
            "weights_origin": detector.weights_origin,
            "device": str(processes.device()),
            **how,
            "num_processes": processes.world_size(),
        }
        document |= evaluate_boxes(found, expected).row() | {
            "kept_by_image": found.kept,
            "images_per_second": len(expected.images) / seconds,
        }
        document |= {"labels": "category ids" if has_ids else "places among the categories"}
        document |= {
            "skipped": list(expected.skipped),
            "num_clipped": expected.num_clipped,
            "notes": list(expected.notes),
        }
        if as_json:
            click.echo(json.dumps(document))
        else:
            show(document)
            warn_of_random(document["weights_origin"], model)


def open_named(config: "TrainConfig") -> "BoxSet":
    """The validation part, its classes named as training names them."""
    from dggraph.data.class_names import as_text
    from dggraph.detection.box_data import open_validation_boxes

    found = open_validation_boxes(config.source)
    return replace(found, classes=as_text(found.classes))
