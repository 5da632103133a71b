"""Load detectors by name.

A name is a torchvision detector, a classifier, which gets a feature pyramid, or
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
"""Largest ratio of the longer to the shorter side that does not scale an image down further.

It is that of torchvision's 1333 to 800 pixels.
"""
OF_MORE_THAN_BOXES = ("maskrcnn", "keypointrcnn")


@dataclass(frozen=True, slots=True)
class LoadedDetector:
    """A detector loaded by name."""

    model: nn.Module
    remarks: tuple[str, ...]
    """Open points of its checkpoint and how each was decided, a sentence each."""
    weights_origin: str
    """Origin of the weights of the detector or of its classifier; see `origins`."""


def detector_names() -> tuple[str, ...]:
    """Return the names of torchvision's box detectors."""
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
        name: a torchvision detector such as `fasterrcnn_resnet50_fpn`; or a classifier as for
            `load_model`, from which `faster_rcnn_on` builds a Faster R-CNN; or
            `package.module:function`, which returns either and is called with `num_classes` if it
            has that argument.
        num_classes: number of classes without the background, which torchvision counts too.
        checkpoint: a state dict of the detector or of the classifier, whichever `name` is.
        weights: initial weights without a checkpoint, as for `load_model`.
        input_size: shorter side in pixels of the images as the network reads them; by default the
            detector's own.
        max_size: upper limit of the longer side; by default 5/3 of `input_size`.
        is_head_new: whether to leave out the tensors of a checkpoint that depend on its number of
            classes.
        is_frozen: whether the backbone's batch norms are frozen. By default they are if a
            detector's checkpoint has frozen norms, and in a pyramid on a trained classifier: one
            with a checkpoint, or returned by a function.

    Raises:
        InputError: there is no model of this name, the checkpoint does not fit, the function fails,
            or the detector reads images of one size only.
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
            f"{name} also learns masks or keypoints, but these datasets only have boxes. Choose"
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
    """Whether a detector's state dict comes from a frozen backbone.

    `FrozenBatchNorm2d` has no count of batches.
    """
    return not any(
        name.startswith("backbone.") and name.endswith(".num_batches_tracked") for name in state
    )


def is_detector(model: nn.Module) -> bool:
    """Whether `model` has the parts of a torchvision detector.

    These are a backbone and a module that resizes images.
    """
    return isinstance(getattr(model, "backbone", None), nn.Module) and isinstance(
        getattr(model, "transform", None), nn.Module
    )


def _of_classes(name: str) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
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
            f"{name} only reads images of {transform.fixed_size} pixels. Leave out input_size and"
            " max_size."
        )
    if input_size is not None:
        transform.min_size, transform.max_size = (input_size,), round(LONGEST * input_size)
    if max_size is not None:
        transform.max_size = max_size
