"""Pyramids on classifiers: the same features to the bit, at the strides asked for, and detectors on
them that can be made dynamic.
"""

from collections.abc import Callable

import pytest
import torch
from small_detectors import seeded
from torch import nn
from torchvision import models
from torchvision.ops import FrozenBatchNorm2d

import dggraph
from dggraph.errors import InputError
from dggraph.models.feature_pyramids import faster_rcnn_on, freeze_norms_, pyramid_on

MAKE: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, ...]]]] = {
    "mobilenet_v2": (
        models.mobilenet_v2,
        {"0": (24, 24, 16), "1": (32, 12, 8), "2": (96, 6, 4), "3": (320, 3, 2)},
    ),
    "resnet18": (
        models.resnet18,
        {"0": (64, 24, 16), "1": (128, 12, 8), "2": (256, 6, 4), "3": (512, 3, 2)},
    ),
    "regnet_y_400mf": (
        models.regnet_y_400mf,
        {"0": (48, 24, 16), "1": (104, 12, 8), "2": (208, 6, 4), "3": (440, 3, 2)},
    ),
    "efficientnet_b0": (
        models.efficientnet_b0,
        {"0": (24, 24, 16), "1": (40, 12, 8), "2": (112, 6, 4), "3": (320, 3, 2)},
    ),
    "convnext_tiny": (
        models.convnext_tiny,
        {"0": (96, 24, 16), "1": (192, 12, 8), "2": (384, 6, 4), "3": (768, 3, 2)},
    ),
}


@pytest.mark.parametrize("name", MAKE)
def test_features_are_those_of_the_classifier(name: str) -> None:
    """Level by level: the layer after which the classifier's own forward has them, to the bit."""
    make, shapes = MAKE[name]
    classifier, x, seen = (
        seeded(make),
        torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(1)),
        [],
    )
    trunk = getattr(classifier, "trunk_output", None) or getattr(classifier, "features", classifier)
    layers = [layer for name, layer in trunk.named_children() if name not in ("avgpool", "fc")]
    handles = [
        layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
        for layer in layers
    ]
    with torch.no_grad():
        classifier(x)
    for handle in handles:
        handle.remove()
    backbone = pyramid_on(classifier, is_frozen=False).eval()
    with torch.no_grad():
        features, levels = backbone.body(x), backbone(x)
    assert {level: tuple(value.shape[1:]) for level, value in features.items()} == shapes
    for value in features.values():
        assert torch.equal(value, [one for one in seen if one.shape == value.shape][-1]), (
            "the last layer of its stride"
        )
    assert list(levels) == ["0", "1", "2", "3", "pool"]
    assert all(value.shape[1] == 256 for value in levels.values())


@pytest.mark.parametrize("name", ["mobilenet_v2", "regnet_y_400mf", "resnet18"])
def test_a_detector_on_it_becomes_dynamic_to_the_bit(name: str) -> None:
    def detector() -> nn.Module:
        return faster_rcnn_on(MAKE[name][0](), 3, min_size=96, max_size=160)

    static, dynamic = seeded(detector), seeded(detector)
    net = dggraph.convert_backbone_(dynamic)
    assert sum(len(net.graph.nodes(stage)) - 2 for stage in net.graph.stages) >= 5
    for size in ((96, 128), (160, 64)):
        x = [torch.rand((3, *size), generator=torch.Generator().manual_seed(2))]
        with torch.no_grad():
            (one,), (two,) = static(x), dynamic(x)
        assert all(torch.equal(one[key], two[key]) for key in ("boxes", "labels", "scores"))


def test_frozen_norms_have_the_same_numbers_and_do_not_move() -> None:
    model = seeded(models.mobilenet_v2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            (
                nn.init.uniform_(module.running_mean),
                nn.init.uniform_(module.running_var, 0.5, 2),
                nn.init.uniform_(module.weight),
            )
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        freeze_norms_(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(model.features.train()(x), model.features.eval()(x))  # type: ignore[operator, union-attr]
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_what_has_no_such_trunk() -> None:
    with pytest.raises(
        InputError,
        match=r"VisionTransformer has no nn\.Sequential called features.*BackboneWithFPN",
    ):
        pyramid_on(models.VisionTransformer(32, 16, 1, 1, 8, 8))
    shallow = nn.Module()
    shallow.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1))
    with pytest.raises(InputError, match="no features of stride 8; a pyramid needs 4, 8, 16, 32"):
        pyramid_on(shallow)
