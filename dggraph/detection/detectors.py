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
"""Label of the first class in torchvision's detectors; 0 is the background."""


def convert_backbone_(
    model: nn.Module, example_input: Tensor | None = None, **options: Any
) -> DynamicNetwork:
    """Replace the feature extractor of `model` by its dynamic network.

    The feature extractor is `model.backbone.body` if a feature pyramid follows it, as in
    torchvision's Faster R-CNN, Mask R-CNN, Keypoint R-CNN, RetinaNet and FCOS; otherwise it is
    `model.backbone`, as in SSDLite, DeepLabV3, FCN and LR-ASPP. Names, strides and channels of the
    features, frozen norms and everything else that `model` needs of its backbone stay the same.
    Before training its outputs are bitwise identical, at any image size.

    Args:
        model: a detection or segmentation model; changed in place.
        example_input: (1 or more, C, H, W), for tracing and counting MACs; by default 256 x 256
            pixels.
        options: options of `convert`.

    Returns:
        The network that is now in `model`, for its graph, report, executor and `collecting_gates`.

    Raises:
        InputError: `model` has no backbone, or its backbone is dynamic already; or as for
            `convert`, which documents further errors.

    Example:
        >>> import dggraph
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
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
                f"{type(body).__name__} has no convolution that shows the number of channels of its"
                " images; pass example_input."
            )
        example_input = torch.zeros((1, weight.shape[1], EXAMPLE_SIDE, EXAMPLE_SIDE))
    net = convert(body, example_input, **options)
    setattr(owner, name, net)
    return net


def read_boxes(output: object) -> list[Detection]:
    """Return the objects that a torchvision detector found on one image.

    Label 0 is left out: it is the background, which RetinaNet and FCOS may return too.

    Raises:
        InputError: `output` is not that of a detector.
    """
    if not isinstance(output, dict) or not {"boxes", "labels", "scores"} <= output.keys():
        raise InputError(
            f"the model returned {type(output).__name__} for an image; a detector returns a dict"
            " with boxes, labels and scores, as torchvision's do."
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
    """Return the module that holds the feature extractor, and the attribute's name."""
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
