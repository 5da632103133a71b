"""Dynamic backbones in torchvision's and timm's own detectors, segmenters and feature
extractors.
"""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from small_detectors import SMALL, mobilenet_fpn, seeded
from torch import Tensor, nn
from torchvision.models import detection, segmentation
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

import dggraph
from dggraph.errors import InputError
from dggraph.network.gate_contexts import collecting_gates
from dggraph.network.network import DynamicNetwork

BARE: dict[str, Any] = {"weights": None, "weights_backbone": None}


def resnext_fpn() -> nn.Module:
    backbone = resnet_fpn_backbone(
        backbone_name="resnext50_32x4d",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
    )
    return detection.FasterRCNN(backbone, 5, **SMALL)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "fasterrcnn": lambda: detection.fasterrcnn_resnet50_fpn(**BARE, **SMALL),
    "fasterrcnn resnext, frozen norms": resnext_fpn,
    "fasterrcnn mobilenet_v2": mobilenet_fpn,
    "maskrcnn": lambda: detection.maskrcnn_resnet50_fpn(**BARE, **SMALL),
    "keypointrcnn": lambda: detection.keypointrcnn_resnet50_fpn(**BARE, **SMALL),
    "retinanet": lambda: detection.retinanet_resnet50_fpn(**BARE, **SMALL),
    "fcos": lambda: detection.fcos_resnet50_fpn(**BARE, **SMALL),
    "ssdlite": lambda: detection.ssdlite320_mobilenet_v3_large(**BARE),
    "deeplabv3": lambda: segmentation.deeplabv3_resnet50(**BARE),
}

OFTEN = ("fasterrcnn", "fasterrcnn mobilenet_v2", "ssdlite", "deeplabv3")
"""Models in each run of the suite; the others are slow."""


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand((3, *size), generator=generator) for size in sizes]


def answers(model: nn.Module, batch: list[Tensor]) -> list[Tensor]:
    """Every tensor that it gives, in order."""
    with torch.no_grad():
        given = model(torch.stack(batch)) if "Simple" in str(type(model).__mro__) else model(batch)
    found = (
        given.values()
        if isinstance(given, dict)
        else [value for one in given for value in one.values()]
    )
    return list(found)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in MODELS],
)
def test_outputs_are_the_same_to_the_bit(name: str) -> None:
    """At two image sizes, with features of the same names; images of a batch may differ in size."""
    model, other = seeded(MODELS[name]), seeded(MODELS[name])
    net = dggraph.convert_backbone_(other)
    assert isinstance(net, DynamicNetwork)
    assert any(one is net for one in other.modules())
    owner = model.backbone
    body = getattr(owner, "body", owner)
    for height, width in ((96, 128), (160, 64)):
        x = torch.stack(images((height, width), (height, width)))
        with torch.no_grad():
            expected, actual = body(x), net(x)
        assert list(actual) == list(expected)
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
        batch = images((height, width), (height, width) if name == "deeplabv3" else (width, height))
        for one, two in zip(answers(model, batch), answers(other, batch), strict=True):
            assert torch.equal(one, two)
    asks = {key: parameter.requires_grad for key, parameter in body.named_parameters()}
    assert asks == {key: net.lowered.get_parameter(key).requires_grad for key in asks}, (
        "frozen layers stay frozen"
    )


@pytest.mark.parametrize("name", ["resnet50", "regnety_004", "mobilenetv2_100"])
def test_feature_extractors_of_timm(name: str) -> None:
    model = seeded(lambda: timm.create_model(name, features_only=True))
    net = dggraph.convert(model, torch.zeros(1, 3, 96, 96)).eval()
    for size in ((96, 128), (160, 64)):
        x = torch.stack(images(size, size))
        with torch.no_grad():
            expected, actual = model(x), net(x)
        assert len(actual) == len(expected)
        assert all(torch.equal(one, two) for one, two in zip(actual, expected, strict=True))


def test_work_is_skipped_inside_a_detector() -> None:
    """Images of other sizes than the traced one, each on its own path: skipping gives what masking
    gives.
    """
    detector = seeded(MODELS["fasterrcnn"])
    net = dggraph.convert_backbone_(detector, router="stage")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in net.lowered.named_parameters():
            if key.startswith("dg_"):
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    sizes = ((96, 128), (120, 90), (96, 96))
    batch, found = (
        [scale * image for scale, image in zip((0.1, 1, 6), images(*sizes), strict=True)],
        {},
    )
    for executor in ("dense", "sparse"):
        net.executor = executor
        with collecting_gates(net) as gates:
            found[executor] = answers(detector, batch)
    assert all(
        torch.allclose(one, two, rtol=1e-4, atol=1e-4)
        for one, two in zip(*found.values(), strict=True)
    )
    opens = torch.cat([weights != 0 for weights in gates[0].weights.values()], 1)
    assert len(gates) == 1
    assert len(opens.unique(dim=0)) > 1
    assert not bool(opens.all()), "paths must differ, or this test says little"


def test_a_detector_learns_with_a_budget() -> None:
    detector = seeded(mobilenet_fpn).train()
    net = dggraph.convert_backbone_(detector)
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 50.0]]), "labels": torch.tensor([1])}
    with collecting_gates(net) as gates:
        losses = detector(images((96, 128), (96, 96)), [target, target])
    (sum(losses.values()) + dggraph.losses.budget(gates[0], 0.7)).backward()
    routers = [p for key, p in net.lowered.named_parameters() if key.startswith("dg_")]
    assert len(gates) == 1
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in routers)
    assert any(bool(p.grad.any()) for p in routers if p.grad is not None)
    net(torch.stack(images((96, 96))))
    assert len(gates) == 1, "nothing is collected outside the context"


def test_what_has_no_backbone() -> None:
    with pytest.raises(InputError, match="no module `backbone`"):
        dggraph.convert_backbone_(nn.Linear(3, 3))
    detector = seeded(mobilenet_fpn)
    dggraph.convert_backbone_(detector)
    with pytest.raises(InputError, match="dynamic already"):
        dggraph.convert_backbone_(detector)


def test_a_detector_given_to_convert_is_told_what_to_do() -> None:
    detector = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(
        InputError, match=r"SSD is a detector .* dggraph\.convert_backbone_\(detector\)"
    ):
        dggraph.convert(detector, torch.zeros(1, 3, 64, 64))
