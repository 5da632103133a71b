"""Blocks that train as branches and run as one: the report and the error name what to call
first.
"""

import copy

import pytest
import torch
from small import Net, X
from torch import Tensor, nn

import dggraph
from dggraph.errors import NothingToRouteError, StructureError
from dggraph.models.reparameterisation import advice


class Branched(nn.Module):
    """Two convolutions with norms beside each other, until `switch_to_deploy`."""

    def __init__(self, num_outputs: int = 8) -> None:
        super().__init__()
        self.large = nn.Sequential(
            nn.Conv2d(8, num_outputs, 3, padding=1), nn.BatchNorm2d(num_outputs)
        )
        self.small = nn.Sequential(nn.Conv2d(8, num_outputs, 1), nn.BatchNorm2d(num_outputs))
        self.one: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.one is not None:
            return torch.relu(self.one(x))
        return torch.relu(self.large(x) + self.small(x))

    def switch_to_deploy(self) -> None:
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        del self.large, self.small


class Fusable(nn.Sequential):
    """One convolution whose norm can go into it: nothing to be said."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))

    def fuse(self) -> None:
        raise AssertionError


def test_the_report_says_what_to_call_first() -> None:
    backbone = Net(Branched).eval()
    branches = dggraph.convert(backbone, X[:1]).report.branches
    assert "3 blocks, for example 'blocks.0' (Branched)" in branches
    assert "model.blocks.0.switch_to_deploy()" in branches
    for block in backbone.blocks:
        block.switch_to_deploy()
    assert dggraph.convert(backbone, X[:1]).report.branches == ""
    assert dggraph.convert(Net(Fusable).eval(), X[:1]).report.branches == ""


def test_where_nothing_can_be_routed_the_error_says_so() -> None:
    with pytest.raises(
        NothingToRouteError, match=r"reparameterise first: switch_to_deploy\(\) of each"
    ):
        dggraph.convert(nn.Sequential(nn.Conv2d(3, 8, 3), Branched(4)).eval(), X[:1])


def test_fusing_afterwards_is_not_passed_over() -> None:
    net = dggraph.convert(Net(Branched).eval(), X[:1])
    net.blocks[1].switch_to_deploy()
    with pytest.raises(StructureError, match=r"runs 'blocks\.1\.large"):
        net(X)


def test_timm_has_one_call_for_all() -> None:
    timm = pytest.importorskip("timm", reason="the models that are reparameterised are timm's")
    model = timm.create_model("repvgg_a0", num_classes=2).eval()
    assert "timm.utils.reparameterize_model(model)" in advice(model)
    assert advice(timm.utils.reparameterize_model(copy.deepcopy(model))) == ""
