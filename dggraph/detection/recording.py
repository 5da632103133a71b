"""Record the predictions of a detector on an image, and the path of its backbone."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional

from dggraph.detection.detectors import FIRST_CLASS, read_boxes
from dggraph.errors import InputError
from dggraph.evaluation.recording import (
    Prediction,
    Predictor,
    activated_paths,
    identify_network,
    on_cpu,
    require_stages,
)
from dggraph.graph.detection import Detected, Detection
from dggraph.network.digests import digest_state
from dggraph.network.gate_contexts import collecting_gates
from dggraph.network.network import DynamicNetwork
from dggraph.system.devices import first_weight
from dggraph.system.modes import evaluating


def make_detector_predictor(
    model: nn.Module, net: DynamicNetwork, *, classes: Sequence[str], name: str
) -> Predictor:
    """Return a predictor that records a detector's objects and the path of its backbone.

    Args:
        model: takes a list of images (3, H, W) in [0, 1] and returns the boxes, labels from 1 and
            scores of each, as torchvision's detectors do.
        net: its backbone, as returned by `convert_backbone_`.
        classes: names of its classes, without the background.
        name: name of the predictor.

    Raises:
        InputError: the backbone has no stages; (when an image is predicted) the backbone does not
            run exactly once.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> detector = ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None, num_classes=3
        ... )
        >>> net = dggraph.convert_backbone_(detector)
        >>> predictor = dggraph.detection.make_detector_predictor(
        ...     detector, net, classes=("cat", "dog"), name="mine"
        ... )
        >>> predictor.predict(Image.new("RGB", (64, 64))).detected.size
        (64, 64)
    """
    require_stages(net)
    predict = partial(_predict_with_detector, model, net, tuple(classes))
    identify = partial(_identify_detector, model, net, tuple(classes))
    return Predictor(name=name, net=net, predict=predict, identify=identify, is_detector=True)


def _predict_with_detector(
    model: nn.Module, net: DynamicNetwork, classes: tuple[str, ...], image: Image.Image
) -> Prediction:
    pixels = functional.convert_image_dtype(
        functional.pil_to_tensor(image.convert("RGB")), torch.float32
    )
    with evaluating(model):
        with collecting_gates(net) as collected:
            (output,) = model([pixels.to(first_weight(model))])
        if len(collected) != 1:
            raise InputError(
                f"this detector runs its backbone {len(collected)} times per image, so there is no"
                " single path to record."
            )
        (path,) = activated_paths(net.graph, collected[0])
    objects = tuple(_named(one, classes) for one in read_boxes(output))
    return Prediction(
        path=path,
        gates=on_cpu(collected[0]),
        classes=(),
        detected=Detected(size=image.size, objects=objects),
    )


def _named(one: Detection, classes: tuple[str, ...]) -> Detection:
    if one.label >= len(classes):
        raise InputError(
            f"this detector found an object of its class {one.label + FIRST_CLASS}, but there are"
            f" names for {len(classes)} classes. Name all classes that it was trained on, without"
            " the background."
        )
    return replace(one, name=classes[one.label])


def _identify_detector(
    model: nn.Module, net: DynamicNetwork, classes: tuple[str, ...]
) -> dict[str, str]:
    return identify_network(net) | {"detector": digest_state(repr((classes, model)), model)}
