"""Modules of a converted network that are replaced or gone: what runs is what is there, or an error
names it.
"""

import copy

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import dggraph
from dggraph.errors import StructureError
from dggraph.network.network import DynamicNetwork


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
    with pytest.raises(StructureError, match=r"'blocks\.1' is a Block with a forward of its own"):
        net(X)
