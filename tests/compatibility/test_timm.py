"""timm's own tools on a converted network do what they do on its backbone."""

from typing import Any

import pytest
import torch
from torch import nn

import dggraph
from dggraph.errors import BackboneOnlyError
from dggraph.network.network import DynamicNetwork

timm = pytest.importorskip("timm", reason="its tools are what this is about")
optim = pytest.importorskip("timm.optim", reason="its tools are what this is about")
NAMES = ("test_vit", "test_resnet")


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, DynamicNetwork]:
    """A backbone and what it was converted into."""
    torch.manual_seed(0)
    backbone = timm.create_model(request.param, num_classes=4).eval()
    return backbone, dggraph.convert(backbone)


def test_data_configuration_and_attributes(pair: tuple[nn.Module, DynamicNetwork]) -> None:
    backbone, net = pair
    assert timm.data.resolve_model_data_config(net) == timm.data.resolve_model_data_config(backbone)
    assert timm.data.resolve_model_data_config(net)["input_size"] == (3, 160, 160)
    for name in ("default_cfg", "pretrained_cfg", "num_classes", "num_features", "feature_info"):
        assert getattr(net, name) == getattr(backbone, name)
    assert net.get_classifier().weight.shape == backbone.get_classifier().weight.shape
    for name in (
        "forward_features",
        "forward_head",
        "forward_intermediates",
        "reset_classifier",
        "set_grad_checkpointing",
    ):
        assert hasattr(backbone, name)
        assert not hasattr(net, name)
        with pytest.raises(BackboneOnlyError, match=name):
            getattr(net, name)


def groups(model: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Weight decay and share of the learning rate of every parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimiser = optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, **options)
    return {
        names[parameter]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimiser.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_decay_falls_on_the_same_parameters(
    pair: tuple[nn.Module, DynamicNetwork], layer_decay: float | None
) -> None:
    static, dynamic = (groups(model, layer_decay=layer_decay) for model in pair)
    assert {name: value for name, value in dynamic.items() if not name.startswith("dg_")} == static
    routers = {value for name, value in dynamic.items() if name.startswith("dg_")}
    assert routers == {(0.0, 1.0)}, "no decay, and the head's rate"
    if layer_decay:
        assert len({scale for _, scale in static.values()}) > 3


def test_freezing_by_name(pair: tuple[nn.Module, DynamicNetwork]) -> None:
    from timm.utils import freeze, unfreeze

    backbone, net = pair
    name = next(path for path, _ in backbone.named_modules() if path in ("blocks.0", "layer1"))
    for model in pair:
        freeze(model, [name])
    frozen = [
        {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
        for model in pair
    ]
    assert frozen[0] == frozen[1]
    assert frozen[0]
    assert all(key.startswith(name) for key in frozen[0])
    x = torch.rand(2, 3, 160, 160)
    assert torch.equal(net(x), backbone(x)), "frozen norms are put in place and run"
    for model in pair:
        unfreeze(model, [name])
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_averages_follow(pair: tuple[nn.Module, DynamicNetwork]) -> None:
    _, net = pair
    average = timm.utils.ModelEmaV3(net, decay=0.5)
    with torch.no_grad():
        before = net.get_classifier().bias.clone()
        net.get_classifier().bias.add_(2)
        average.update(net, step=10)
        x = torch.rand(2, 3, 160, 160)
        net.get_classifier().bias.copy_(before + 1)
        torch.testing.assert_close(average.module(x), net(x))
        net.get_classifier().bias.copy_(before)
