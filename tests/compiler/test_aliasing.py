"""In-place writes: whoever overwrites the identity is never lifted, and every spelling of it is
known.
"""

import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, fx
from torch.nn import functional

import dggraph
from dggraph.compiler.aliasing import may_overwrite, overwritten


def _setitem(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def _view(x: Tensor) -> Tensor:
    x.flatten(2).clamp_(min=0)
    return x


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.relu_": torch.relu_,
    "F.relu_": functional.relu_,
    "F.relu inplace": lambda x: functional.relu(x, inplace=True),
    "F.relu positional": lambda x: functional.relu(x, True),
    "method": lambda x: x.mul_(2),
    "setitem": _setitem,
    "through a view": _view,
    "out": lambda x: torch.mul(x, 2, out=x),
}


def writing(write: Callable[[Tensor], Tensor]) -> Any:
    class Writing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv2(self.conv1(write(x)))

    return Writing


@pytest.mark.parametrize("name", WRITES)
def test_a_block_that_overwrites_its_input_is_kept(name: str) -> None:
    model = Net(writing(WRITES[name])).eval()
    net = dggraph.convert(model, X)
    (stage,) = net.report.stages
    assert stage.residual == "keep"
    assert stage.kept_because == "blocks.0 does not end in an identity add"
    with torch.no_grad():
        assert torch.equal(net(X.clone()), model(X.clone()))
    assert all(block.writes_input for block in net.plan[0].blocks)


def test_fresh_operands_may_be_overwritten() -> None:
    net = dggraph.convert(Net(writing(torch.relu)), X)
    assert net.report.stages[0].residual == "lift"
    assert not any(block.writes_input for block in net.plan[0].blocks[1:])


@pytest.mark.parametrize(
    "function", [operator.iadd, operator.ifloordiv, operator.ior, operator.setitem]
)
def test_in_place_operators(function: Any) -> None:
    """fx itself traces `x += y` out of place, but graphs from elsewhere have them."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(function, (x, 2))
    flow = SimpleNamespace(by_name={"x": x, node.name: node}, module=torch.nn.Module())
    assert overwritten(flow, node) == (x,)
    assert may_overwrite(flow, x)
