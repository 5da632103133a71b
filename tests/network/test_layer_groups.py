"""Layer-wise learning rates of timm: the backbone's parameters get what they get there, routers
what the last layers get.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import Net, X
from torch import nn

import dggraph

pytestmark = pytest.mark.cpu

optim = pytest.importorskip("timm.optim", reason="layer-wise learning rates are timm's")

BLOCKS = (r"^blocks\.(\d+)", None)


class Unmatched(Net):
    """The head is what no pattern finds, as in most of timm's models."""

    def group_matcher(self, coarse: bool = False) -> Any:
        return {"stem": r"^stem", "blocks": [BLOCKS]}


class Matched(Net):
    """Every parameter is found by a pattern."""

    def group_matcher(self, coarse: bool = False) -> Any:
        return {"stem": r"^stem", "blocks": [BLOCKS, (r"^head", (99999,))]}


class ByFunction(Net):
    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        return lambda name: (
            0
            if name.startswith("stem")
            else 1 + int(name.split(".")[1])
            if name.startswith("blocks")
            else 4
        )


class Automatic(Net):
    """timm divides its parameters by twelves."""

    pretrained_cfg = {"classifier": "head"}  # noqa: RUF012


def rates(model: nn.Module) -> dict[str, float]:
    named = {parameter: name for name, parameter in model.named_parameters()}
    groups = optim.create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.5).param_groups
    return {
        named[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]
    }


@pytest.mark.parametrize("kind", [Unmatched, Matched, ByFunction, Automatic])
def test_rates_are_those_of_the_backbone(kind: type[Net]) -> None:
    backbone = kind().eval()
    net = dggraph.convert(backbone, X[:1])
    found = rates(net)
    assert {name: rate for name, rate in found.items() if not name.startswith("dg_")} == rates(
        backbone
    )
    assert {rate for name, rate in found.items() if name.startswith("dg_")} == {1.0}
    assert len(set(found.values())) > 1
    assert torch.equal(net(X), backbone(X))


def test_a_backbone_that_is_none_of_timms_has_no_groups() -> None:
    assert not hasattr(dggraph.convert(Net().eval(), X[:1]), "group_matcher")
