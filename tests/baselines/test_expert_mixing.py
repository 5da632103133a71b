"""Mixtures of experts against timm's CondConv2d with the same weights, and against plain loops."""

import pytest
import torch
from torch import Tensor, nn

from dggraph.baselines import cond_conv, dynamic_conv
from dggraph.baselines.conditional_convs import SigmoidMixture
from dggraph.baselines.expert_mixing import MixedConv
from dggraph.baselines.kernel_attention import KernelAttention
from dggraph.errors import InputError

CONVS = {
    "plain": {"kernel_size": 3, "padding": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "pointwise": {"kernel_size": 1},
    "depthwise": {"kernel_size": 5, "padding": 2, "groups": 8, "bias": False},
    "same": {"kernel_size": 3, "padding": "same", "dilation": 2},
}


class Fixed(nn.Module):
    """A mixture that was decided beforehand."""

    def __init__(self, mixture_BK: Tensor) -> None:
        super().__init__()
        self.mixture_BK = mixture_BK

    def forward(self, features: Tensor) -> Tensor:
        return self.mixture_BK


def mixed(kind: str) -> tuple[nn.Conv2d, MixedConv, Tensor, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, **CONVS[kind])
    mixture_BK = torch.rand(3, 4)
    module = MixedConv(conv, Fixed(mixture_BK), num_experts=4, init="scratch")
    return conv, module, mixture_BK, torch.randn(3, 8, 9, 9)


def called(module: MixedConv, conv: nn.Conv2d, x: Tensor) -> Tensor:
    return module(x, conv.weight, *([] if conv.bias is None else [conv.bias]))


@pytest.mark.parametrize("kind", sorted(CONVS))
@torch.no_grad()
def test_each_image_is_convolved_with_its_own_sum_of_experts(kind: str) -> None:
    conv, module, mixture_BK, x = mixed(kind)
    for image, weights_K, y in zip(x, mixture_BK, called(module, conv, x), strict=True):
        expected = weights_K[0] * conv(image[None])
        for number, weight in enumerate(weights_K[1:]):
            twin = nn.Conv2d(8, 8, **CONVS[kind])
            twin.weight.copy_(module.weights[number])
            if module.biases is not None:
                twin.bias.copy_(module.biases[number])
            expected += weight * twin(image[None])
        assert torch.allclose(y, expected[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "strided", "pointwise", "depthwise"])
@torch.no_grad()
def test_the_layer_is_timms(kind: str) -> None:
    timm = pytest.importorskip("timm.layers", reason="compares with timm's layer")
    conv, module, mixture_BK, x = mixed(kind)
    theirs = timm.CondConv2d(
        8, 8, num_experts=4, **{"bias": True} | CONVS[kind] | {"padding": conv.padding[0]}
    )
    theirs.weight.copy_(torch.cat([conv.weight[None], module.weights]).flatten(1))
    if conv.bias is not None:
        theirs.bias.copy_(torch.cat([conv.bias[None], module.biases]))
    assert torch.allclose(called(module, conv, x), theirs(x, mixture_BK), atol=1e-6)


@torch.no_grad()
def test_sigmoid_weights_add_up_to_one_at_the_start_and_differ() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, 5)
    for num_experts in (2, 3, 8):
        mixture = SigmoidMixture(8, num_experts)
        weights_BK = mixture(x)
        assert torch.allclose(weights_BK.sum(1), torch.ones(3), atol=1e-6)
        assert weights_BK.std() > 1e-3
        mixture.linear.bias.fill_(1.0)
        mixture.linear.weight.zero_()
        expected = 2 / num_experts * torch.ones(3, num_experts).sigmoid()
        assert torch.equal(mixture(x), expected)


@torch.no_grad()
def test_attention_falls_from_near_uniform_to_its_own_softmax() -> None:
    net = dynamic_conv("dggraph:resnet14_4", kernels=3)
    attention = next(one for one in net.modules() if isinstance(one, KernelAttention))
    x = torch.randn(2, attention.reduce.in_features, 4, 4)
    logits_BK = attention.expand(attention.reduce(x.mean((2, 3))).relu())
    for done, temperature in ((0.0, 30.0), (0.05, 15.5), (0.1, 1.0), (1.0, 1.0)):
        net.anneal_(done)
        assert torch.allclose(attention(x), (logits_BK / temperature).softmax(1))
    assert "temperature" in "".join(net.state_dict())


def test_experts_part_after_a_step_though_they_start_as_copies() -> None:
    torch.manual_seed(0)
    for net in (cond_conv("dggraph:resnet14_4", experts=4), dynamic_conv("dggraph:resnet14_4")):
        net(torch.randn(4, 3, 32, 32)).square().mean().backward()
        layers = [module for module in net.modules() if isinstance(module, MixedConv)]
        assert layers
        for layer in layers:
            first, second = layer.weights.grad[:2]
            assert not torch.allclose(first, second, rtol=1e-6, atol=0)


def test_only_the_last_blocks_are_changed_and_the_others_are_told() -> None:
    net = cond_conv("dggraph:resnet14_4", experts=2, num_blocks=1)
    assert net.report.changed == ("layer3.1.conv1", "layer3.1.conv2")
    assert ("layer3.0", "not among the last 1 blocks") in net.report.unchanged
    whole = cond_conv("dggraph:resnet14_4", experts=2, num_blocks=0)
    assert "layer2.0.skip" in whole.report.changed
    assert len(whole.report.changed) == 2 * 6 + 2


@torch.no_grad()
def test_experts_drawn_anew_start_as_another_function() -> None:
    torch.manual_seed(0)
    net = dynamic_conv("dggraph:resnet14_4", init="scratch")
    assert net.report.exactness == "no"
    assert net.report.max_difference > 1e-3
    weights = net.get_submodule("dg_method.layer1_0_conv1").weights
    own = net.get_parameter("layer1.0.conv1.weight")
    assert 0.5 < float(weights.std() / own.std()) < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": 1}, "experts=1 is not a whole number of at least 2"),
        ({"num_blocks": -1}, "num_blocks=-1 is not a whole number of at least 0"),
        ({"init": "zero"}, "init='zero' is not one of preserve, scratch"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cond_conv("dggraph:resnet14_4", **options)
