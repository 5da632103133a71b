"""Modules of a converted network that are replaced or gone: what runs is what is there, or an error
names it.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import dggraph
from dggraph.errors import StructureError
from dggraph.network.network import DynamicNetwork

pytestmark = pytest.mark.cpu


class Other(Block):
    """A block with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return x - self.conv1(x)


class Named(Block):
    """A block with the same forward."""


@pytest.fixture
def net() -> DynamicNetwork:
    return dggraph.convert(Net().eval(), X[:1])


def test_what_the_graph_calls_may_be_anything(net: DynamicNetwork) -> None:
    net.blocks[0].norm = nn.Identity()
    net.blocks[1].conv1 = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
    spectral_norm(net.blocks[2].conv1)
    net.blocks[1] = copy.deepcopy(net.blocks[1])
    net.blocks[0].__class__ = Named  # as wrappers that shard do
    again = copy.deepcopy(net)
    for executor in ("dense", "sparse"):
        with torch.no_grad():
            net.executor = again.executor = executor
            assert torch.equal(net(X), again(X))


@pytest.mark.parametrize("executor", ["dense", "sparse"])
def test_what_is_gone_is_named_and_may_come_back(net: DynamicNetwork, executor: str) -> None:
    net.executor = executor
    kept = net.head
    del net.head
    with (
        torch.no_grad(),
        pytest.raises(StructureError, match=r"runs 'head', which is no longer there.*net\.head = "),
    ):
        net(X)
    net.head = kept
    net.blocks[1].norm = None
    with torch.no_grad(), pytest.raises(StructureError, match=r"runs 'blocks\.1\.norm'"):
        net(X)
    net.blocks[1].norm = nn.Identity()
    assert net(X).shape == (2, 5)


@pytest.mark.parametrize("block", [nn.Identity(), Other(), torch.compile(Block(), backend="eager")])
def test_another_forward_is_not_passed_over(net: DynamicNetwork, block: nn.Module) -> None:
    net.blocks[1] = block
    was = rf"'blocks\.1' is a {type(block).__name__}.*as Block did.*no effect"
    with pytest.raises(
        StructureError,
        match=was + (".*Compile the whole network" if hasattr(block, "_orig_mod") else ""),
    ):
        net(X)


def test_a_forward_set_on_a_block_is_not_passed_over(net: DynamicNetwork) -> None:
    net.blocks[1].forward = lambda x: x
    with pytest.raises(StructureError, match=r"'blocks\.1' is a Block with its own forward"):
        net(X)


def test_a_forward_set_on_a_class_is_not_passed_over(
    net: DynamicNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        net(X)
        monkeypatch.setattr(Block, "forward", lambda self, x: x)
        with pytest.raises(StructureError, match=r"'blocks\.0'"):
            net(X)


class Pre(nn.Module):
    """Its first layer may be made to write into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv1, self.conv2 = (
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(self.first(x))))


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


WRITERS: dict[str, Callable[[Any], Any]] = {
    "setting": lambda block: setattr(block.first, "inplace", True),
    "layer": lambda block: setattr(block, "first", nn.ReLU(inplace=True)),
    "container": lambda block: setattr(block, "first", nn.Sequential(nn.ReLU(inplace=True))),
    "foreign": lambda block: setattr(block, "first", Doubling()),
}


@pytest.mark.parametrize("router", ["stage", "node"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_new_layer_may_write_into_its_input(name: str, router: str) -> None:
    net: Any = dggraph.convert(Net(Pre).eval(), X[:1], router=router).eval()
    (stage,) = net.graph.stages
    routing = net.lowered.get_submodule(f"dg_{stage}")
    with torch.no_grad():
        for vertex in range(3 if router == "node" else 1):  # every edge open, at weight 1
            anchor = routing.gate(vertex).anchor_E
            routing.router(vertex).bias.copy_(20 * (1 - anchor))
        for _ in range(3):
            net(X)
        for block in net.blocks:
            WRITERS[name](block)
        net.executor = "dense"
        expected = net(X)
        net.executor = "auto"
        for x, y in ((X, expected), (X[:1], expected[:1])):
            for _ in range(4):
                torch.testing.assert_close(net(x), y, rtol=1e-5, atol=1e-6)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normed, self.conv = Normed(), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(self.normed(x)))


def test_a_layer_with_a_norm_inside_may_go() -> None:
    net: Any = dggraph.convert(Net(Around).eval(), X[:1], leaves=(Normed,)).eval()
    with torch.no_grad():
        net(X)
        net.blocks[0].normed = nn.Identity()
        net.blocks[1].normed.norm = nn.Sequential(nn.GroupNorm(2, 8))
        net.executor = "dense"
        expected = net(X)
        net.executor = "auto"
        for _ in range(4):
            torch.testing.assert_close(net(X), expected)
