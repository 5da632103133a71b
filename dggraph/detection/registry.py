"""MODEL names of detectors: torchvision's, a classifier's with a feature pyramid on it, or
`package.module:function`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.models.default_weights import fetch_detector
from dggraph.models.feature_pyramids import faster_rcnn_on, freeze_norms_
from dggraph.models.origins import RANDOM, checkpoint_origin
from dggraph.models.registry import (
    is_registered,
    load_model,
    model_names,
    start_from_,
    takes_num_classes,
    unknown_model,
)
from dggraph.models.weights import fitted, load_checkpoint_, read_checkpoint

LONGEST = 5 / 3
"""Longest side over the shortest, as far as images are not scaled down for it: torchvision's 1333
to 800.
"""
OF_MORE_THAN_BOXES = ("maskrcnn", "keypointrcnn")


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A detector as its name says."""

    model: nn.Module
    remarks: tuple[str, ...]
    """What its checkpoint left open, and how that was settled, a sentence each."""
    weights_origin: str
    """Where the detector's weights, or those of its classifier, come from; see `origins`."""


def detector_names() -> tuple[str, ...]:
    """Torchvision's detectors of boxes."""
    names = torchvision.models.list_models(module=torchvision.models.detection)
    return tuple(name for name in names if not name.startswith(OF_MORE_THAN_BOXES))


def load_detector(
    name: str,
    num_classes: int,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: Literal["random", "default"] = "random",
    input_size: int | None = None,
    max_size: int | None = None,
    is_head_new: bool = False,
    is_frozen: bool | None = None,
) -> LoadedDetector:
    """Build the detector called `name`, in eval mode.

    Args:
        name: `fasterrcnn_resnet50_fpn` and others of torchvision; a classifier as for `load_model`,
            which becomes Faster R-CNN by `faster_rcnn_on`; or `package.module:function`, called
            with `num_classes` where it takes that, which returns either.
        num_classes: without the background, which torchvision counts besides.
        checkpoint: a state dict of the detector or the classifier, whichever `name` says.
        weights: what one without a checkpoint begins with, as for `load_model`.
        input_size: of images as the network reads them, the shorter side in pixels; by default the
            detector's own.
        max_size: the longer side at most; by default 5/3 of `input_size`.
        is_head_new: of a checkpoint of another number of classes, leave out what depends on that
            number.
        is_frozen: whether the backbone's batch norms are frozen; by default where a checkpoint of a
            detector comes of frozen ones, and below a pyramid on a classifier that is trained: one
            with a checkpoint, or of a function.

    Raises:
        InputError: no such model, a checkpoint that does not fit, a function that fails, or a
            detector that reads one size only.
    """
    remarks: tuple[str, ...] = ()
    origin = RANDOM
    if name in detector_names():
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=num_classes + 1
        )
        found = None
        if weights == "default":
            found, origin = fetch_detector(name)
        if checkpoint is not None:
            found, origin = read_checkpoint(checkpoint), checkpoint_origin(checkpoint)
        found = None if found is None else fitted(found, model.state_dict().keys())
        is_stored_frozen = found is not None and has_frozen_norms(found.tensors)
        if is_stored_frozen if is_frozen is None else is_frozen:
            freeze_norms_(model.get_submodule("backbone"))
        if found is not None:
            remarks = load_checkpoint_(
                model, found, replaceable=_of_classes(name) if is_head_new else ()
            )
    elif name.startswith(OF_MORE_THAN_BOXES):
        raise InputError(
            f"{name} learns more than boxes, which is all that these data sets have. Choose"
            f" fasterrcnn_{name.partition('_')[2]}."
        )
    elif is_registered(name) and name not in model_names():
        detectors = detector_names()
        listing = f"`dggraph models` lists classifiers; detectors are {', '.join(detectors)}."
        raise unknown_model(name, (*detectors, *model_names()), listing)
    else:
        number = num_classes if not is_registered(name) and takes_num_classes(name) else None
        loaded = load_model(
            name,
            num_classes=number,
            checkpoint=None if is_head_new else checkpoint,
            weights=weights,
        )
        origin = loaded.weights_origin if checkpoint is None else checkpoint_origin(checkpoint)
        remarks = (
            start_from_(loaded, checkpoint)
            if is_head_new and checkpoint is not None
            else loaded.remarks
        )
        model = loaded.model
        if not is_detector(model):
            is_trained = origin != RANDOM
            model = faster_rcnn_on(
                model, num_classes, is_frozen=is_trained if is_frozen is None else is_frozen
            )
    if input_size is not None or max_size is not None:
        _resize_(model, name, input_size, max_size)
    model.eval()
    return LoadedDetector(model, remarks, origin)


def has_frozen_norms(state: Mapping[str, Tensor]) -> bool:
    """Whether the state dict of a detector is of one with a frozen backbone: `FrozenBatchNorm2d`
    counts no batches.
    """
    return not any(
        name.startswith("backbone.") and name.endswith(".num_batches_tracked") for name in state
    )


def is_detector(model: nn.Module) -> bool:
    """Whether it is built as torchvision's are: what resizes images, a backbone, and more."""
    return isinstance(getattr(model, "backbone", None), nn.Module) and isinstance(
        getattr(model, "transform", None), nn.Module
    )


def _of_classes(name: str) -> set[str]:
    """Names of the tensors whose shape depends on the number of classes."""
    with torch.device("meta"):
        one, other = (
            torchvision.models.get_model(
                name, weights=None, weights_backbone=None, num_classes=number
            ).state_dict()
            for number in (2, 3)
        )
    return {key for key, tensor in one.items() if tensor.shape != other[key].shape}


def _resize_(model: Any, name: str, input_size: int | None, max_size: int | None) -> None:
    transform = model.transform
    if getattr(transform, "fixed_size", None) is not None:
        raise InputError(
            f"{name} reads images of {transform.fixed_size} pixels only. Leave input_size and"
            " max_size out."
        )
    if input_size is not None:
        transform.min_size, transform.max_size = (input_size,), round(LONGEST * input_size)
    if max_size is not None:
        transform.max_size = max_size
