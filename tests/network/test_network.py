"""What a converted network does under torch's own transformations: it works, or says in one error
what to do instead.
"""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import Net, X
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torchvision.models.feature_extraction import create_feature_extractor

import dggraph
from dggraph.errors import BackboneOnlyError
from dggraph.network.network import DynamicNetwork
from dggraph.ops.routing import LinearRouter

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture(scope="module")
def net() -> DynamicNetwork:
    """Routers decide something; in eval mode."""
    torch.manual_seed(0)
    net = dggraph.convert(Net().eval(), X[:1])
    for router in net.modules():
        if isinstance(router, LinearRouter):
            nn.init.normal_(router.weight, std=3)
    return net


def test_a_jit_trace_can_be_saved_and_routes_other_images(net: DynamicNetwork) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, X), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for x in (X, 20 * X.flip(0), torch.cat([X, -5 * X])):
        torch.testing.assert_close(loaded(x), net(x))


def test_a_jit_trace_in_train_mode_is_refused(net: DynamicNetwork) -> None:
    with pytest.raises(BackboneOnlyError, match=r"net\.eval\(\) first"):
        torch.jit.trace(copy.deepcopy(net).train(), X)


def dual(net: nn.Module) -> Tensor:
    with forward_ad.dual_level():
        return net(forward_ad.make_dual(X, X))  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "fx": (fx.symbolic_trace, r"torch\.fx cannot trace.*net\.lowered\.graph.*to the backbone"),
    "fx around it": (lambda net: fx.symbolic_trace(nn.Sequential(net)), r"torch\.fx cannot trace"),
    "feature extraction": (
        lambda net: create_feature_extractor(net, ["blocks"]),
        r"create_feature_extractor.*convert the result",
    ),
    "script": (torch.jit.script, r"torch\.jit\.script cannot.*torch\.jit\.trace"),
    "script around it": (
        lambda net: torch.jit.script(nn.Sequential(net)),
        r"torch\.jit\.script cannot",
    ),
    "jvp": (
        lambda net: torch.func.jvp(net, (X,), (X,)),
        r"no forward-mode derivatives.*Use reverse mode",
    ),
    "jacfwd": (
        lambda net: torch.func.jacfwd(lambda x: net(x).sum())(X),
        r"no forward-mode derivatives",
    ),
    "dual tensors": (dual, r"no forward-mode derivatives"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_error(net: DynamicNetwork, name: str) -> None:
    attempt, message = REFUSED[name]
    with pytest.raises(BackboneOnlyError, match=message):
        attempt(net)


def test_an_empty_network_that_loads_is_the_same(net: DynamicNetwork) -> None:
    """Whatever `to_empty` leaves where no state dict reaches: gates' anchors here."""
    state = {key: value.clone() for key, value in net.state_dict().items()}
    expected = net(X)
    for steps in (("meta",), ("meta", "meta"), ()):
        twin = copy.deepcopy(net)
        for device in steps:
            twin = copy.deepcopy(twin.to(device))
        twin.to_empty(device="cpu")
        twin.load_state_dict(state)
        assert torch.equal(twin(X), expected)


def test_fake_images_run_the_dense_form(net: DynamicNetwork) -> None:
    """They have no values to decide by."""
    net, mode = copy.deepcopy(net).eval(), FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        y = net(mode.from_tensor(X))
    assert isinstance(y, FakeTensor)
    assert net.last_run == "dense: the images have no values"


class WithConstant(Net):
    """Its forward makes a tensor, which tracing keeps."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x) * torch.tensor([0.7]))
        return logits


def test_constants_of_the_forward_survive_too() -> None:
    backbone = WithConstant().eval()
    net = dggraph.convert(backbone, X[:1])
    nn.Sequential(net).to("meta").to_empty(device="cpu")
    net.load_state_dict(backbone.state_dict(), strict=False)
    for stage in net.graph.stages:
        owner = net.get_submodule(f"dg_{stage}")
        for tensor in owner.state_dict().values():
            tensor.zero_()
        for name, tensor in owner.state_dict().items():
            if name.endswith("temperature"):
                tensor.fill_(1)
    net.set_threshold(0.5)
    assert torch.equal(net(X), backbone(X))
    assert net.half().float()(X).dtype == torch.float32


def test_functional_calls_swap_the_backbone_s_own_names(net: DynamicNetwork) -> None:
    bias = torch.arange(5.0)
    changed = {"head.2.weight": torch.zeros(5, 8), "head.2.bias": bias}
    assert torch.equal(torch.func.functional_call(net, changed, (X,)), bias.expand(2, 5))
    assert not torch.equal(net(X), bias.expand(2, 5))
