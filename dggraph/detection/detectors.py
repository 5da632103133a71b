"""Dynamic backbones inside detection and segmentation models."""

from typing import Any

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.graph.detection import Detection
from dggraph.network.conversion import convert
from dggraph.network.network import DynamicNetwork

EXAMPLE_SIDE = 256
FIRST_CLASS = 1
"""Torchvision's detectors number the classes from here: 0 is the background."""


def convert_backbone_(
    model: nn.Module, example_input: Tensor | None = None, **options: Any
) -> DynamicNetwork:
    """Convert the part of `model` that extracts features, and put the dynamic network in its place.

    That is `model.backbone.body` where a feature pyramid follows it, as in torchvision's Faster
    R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet and FCOS; otherwise `model.backbone`, as in
    SSDLite, DeepLabV3, FCN and LR-ASPP. Names, strides and channels of the features, frozen norms
    and what `model` expects of its backbone stay, and before training its outputs are the same to
    the bit, at any image size.

    Args:
        model: a detection or segmentation model; changed in place.
        example_input: (1 or more, C, H, W), for tracing and counting MACs; by default 256 x 256
            pixels.
        options: of `convert`.

    Returns:
        The network that is in `model` now, for its graph, report, executor and `collecting_gates`.

    Raises:
        InputError: `model` has no backbone, or one that is dynamic already; or as for `convert`,
            which also says what else may be wrong.

    Example:
        >>> import dggraph, torchvision
        >>> detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None
        ... )
        >>> net = dggraph.convert_backbone_(detector)
        >>> detector.backbone is net
        True
    """
    owner, name = _place(model)
    body: nn.Module = getattr(owner, name)
    if isinstance(body, DynamicNetwork):
        raise InputError(
            f"the backbone of this {type(model).__name__} is dynamic already; convert a static one."
        )
    if example_input is None:
        weight = next((p for p in body.parameters() if p.ndim == 4), None)
        if weight is None:
            raise InputError(
                f"{type(body).__name__} has no convolution to tell the channels of its images from;"
                " pass example_input."
            )
        example_input = torch.zeros((1, weight.shape[1], EXAMPLE_SIDE, EXAMPLE_SIDE))
    net = convert(body, example_input, **options)
    setattr(owner, name, net)
    return net


def read_boxes(output: object) -> list[Detection]:
    """What a detector of torchvision's kind found on one image. Label 0, the background, which
    RetinaNet and FCOS may answer too, is left out.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(output, dict) or not {"boxes", "labels", "scores"} <= output.keys():
        raise InputError(
            f"the model gave {type(output).__name__} for an image; a detector gives a dict with"
            " boxes, labels and scores, as torchvision's do."
        )
    boxes, labels, scores = (
        output[key].detach().cpu().double().tolist() for key in ("boxes", "labels", "scores")
    )
    return [
        Detection(corners=tuple(box), label=int(number) - FIRST_CLASS, score=score)
        for box, number, score in zip(boxes, labels, scores, strict=True)
        if int(number) >= FIRST_CLASS
    ]


def _place(model: nn.Module) -> tuple[nn.Module, str]:
    """The module that holds the feature extractor, and its name there."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise InputError(
            f"{type(model).__name__} has no module `backbone`. Convert its feature extractor"
            " yourself: model.features = dggraph.convert(model.features, example_input)."
        )
    return (
        (backbone, "body")
        if isinstance(getattr(backbone, "body", None), nn.Module)
        else (model, "backbone")
    )
