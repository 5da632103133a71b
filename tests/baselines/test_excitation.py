"""Squeeze-and-Excitation against timm's and torchvision's, with the same weights."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

import dggraph
from dggraph.baselines import squeeze_excitation
from dggraph.baselines.excitation import SqueezeExcitation
from dggraph.errors import InputError


def as_convs(gate: SqueezeExcitation) -> list[tuple[Tensor, Tensor | None]]:
    return [
        (layer.weight.detach()[:, :, None, None], layer.bias.detach())
        for layer in (gate.reduce, gate.expand)
    ]


def filled(layer: nn.Module, gate: SqueezeExcitation) -> nn.Module:
    for conv, (weight, bias) in zip((layer.fc1, layer.fc2), as_convs(gate), strict=True):
        conv.weight.data, conv.bias.data = weight, bias
    return layer


@torch.no_grad()
def test_the_layer_is_that_of_timm_and_torchvision() -> None:
    timm = pytest.importorskip("timm.layers", reason="compares with timm's layer")
    torch.manual_seed(0)
    gate, x = SqueezeExcitation(16, 4, 1), torch.randn(2, 16, 5, 5)
    theirs = (
        timm.SEModule(16, rd_channels=4),
        torchvision.ops.SqueezeExcitation(16, 4),
    )
    for layer in theirs:
        assert torch.allclose(gate(x), filled(layer, gate)(x), atol=1e-6)
    last = SqueezeExcitation(16, 4, -1)
    last.load_state_dict(gate.state_dict())
    assert torch.allclose(last(x.permute(0, 2, 3, 1)), gate(x).permute(0, 2, 3, 1), atol=1e-6)


@torch.no_grad()
def test_a_resnet_becomes_timms_seresnet() -> None:
    """Same places, same widths: weights copied over give timm's network."""
    timm = pytest.importorskip("timm", reason="compares with timm's network")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    theirs = timm.create_model("seresnet50", num_classes=3).eval()
    plain = timm.create_model("resnet50", num_classes=3).eval()
    own = {key: tensor for key, tensor in theirs.state_dict().items() if ".se." not in key}
    plain.load_state_dict(own)
    net = squeeze_excitation(plain, x)
    for block, gate in net.dg_method.named_children():
        stage, _, number = block.partition("_")
        layer = getattr(theirs, stage)[int(number)].se
        for linear, conv in ((gate.reduce, layer.fc1), (gate.expand, layer.fc2)):
            linear.weight.data, linear.bias.data = conv.weight[:, :, 0, 0], conv.bias.data
    assert len(net.dg_method._modules) == 16
    assert sum(map(torch.numel, net.parameters())) == sum(map(torch.numel, theirs.parameters()))
    expected = theirs(x)
    assert float((net(x) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@torch.no_grad()
def test_a_block_without_shortcut_is_scaled_at_its_end() -> None:
    net = squeeze_excitation("mobilenet_v2", torch.zeros(1, 3, 32, 32))
    assert "features.2" in net.report.changed  # the first of its stage has another stride
    assert ("features.1", "the only block at its shape") in net.report.unchanged
    seen = []
    net.get_submodule("dg_method.features_2").register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0], output))
    )
    net.get_submodule("features.3.conv.0.0").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    net(torch.rand(1, 3, 32, 32))
    (before, after), read = seen
    assert torch.equal(after, read)
    assert not torch.equal(before, after)


def test_each_residual_of_a_transformer_block_gets_one() -> None:
    pytest.importorskip("timm", reason="needs timm's ViT")
    net = squeeze_excitation("timm:vit_tiny_patch16_224", torch.zeros(1, 3, 224, 224))
    assert len(net.dg_method._modules) == 2 * 12
    assert {module.channel_axis for module in net.dg_method.children()} == {-1}


@pytest.mark.parametrize("reduction", [0, 2.5, True, "4"])
def test_a_reduction_that_is_no_number_of_channels_is_refused(reduction: object) -> None:
    with pytest.raises(InputError, match=f"reduction={reduction!r} is not a whole number"):
        squeeze_excitation("dggraph:resnet14_4", reduction=reduction)


def test_the_start_is_said_to_be_another_function() -> None:
    report = dggraph.baselines.squeeze_excitation("dggraph:resnet14_4").report
    assert report.exactness == "no"
    assert report.max_difference > 0


def test_single_hidden_units_are_reported() -> None:
    """Its layers have 4, 8 and 16 channels, two of each."""
    reports = [
        str(squeeze_excitation("dggraph:resnet14_4", reduction=reduction).report)
        for reduction in (2, 8, 16)
    ]
    assert "hidden unit" not in reports[0]
    assert "; 4 of 6 have a single hidden unit" in reports[1]
    assert "; 6 of 6 have a single hidden unit" in reports[2]
