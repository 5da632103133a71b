"""The static network beside a converted one: same weights, same steps, nothing routed."""

import pytest
import torch
from small import Net, X
from torch import nn

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.static_twin import static_twin, with_weights_of


def trained() -> tuple[Net, dggraph.DynamicNetwork]:
    """A backbone, and its conversion with other weights and other statistics since."""
    net = dggraph.convert(Net(), X)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        net.train()(X)
    return Net(), net.eval()


def test_it_has_the_weights_of_the_network_and_no_routed_block() -> None:
    backbone, net = trained()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    static, twin = with_weights_of(net, backbone), static_twin(net, backbone)
    own = net.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in static.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not static.training
    assert not twin.graph.stages
    with torch.inference_mode():
        expected = static(X)
        for _ in range(3):  # the second pass is inlined
            assert torch.equal(twin(X), expected)
        assert twin.last_run == "sparse"
        fast = dggraph.optimize_for_inference(twin)
        for _ in range(3):
            assert torch.allclose(fast(X), expected, rtol=1e-4, atol=1e-5)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())


def test_another_backbone_is_named() -> None:
    _, net = trained()
    wider = Net()
    wider.head[2] = nn.Linear(8, 7)
    with pytest.raises(InputError, match=r"this Net do not fit the given Net.*head\.2"):
        static_twin(net, wider)
    with pytest.raises(InputError, match=r"do not fit the given Sequential.*'0\.weight'"):
        with_weights_of(net, nn.Sequential(nn.Conv2d(3, 8, 3)))
