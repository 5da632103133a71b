"""Static networks in pickles: what is read again is the same network."""

import copy
import io
import operator
from typing import Any

import pytest
import torch
from kinds import KINDS, converted
from reference import randomise, randomise_routers
from small import Net
from torch import Tensor, fx, nn

import dggraph
from dggraph.exporting.reloading import ReloadingTracer


def reloaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def images() -> Tensor:
    return torch.randn(4, 3, 16, 16) + 2 * torch.randn(4, 3, 1, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_and_copies_are_the_same_network(kind: str) -> None:
    net, x = converted(kind), images()
    for path in (dggraph.record(net, x).paths[0], "backbone"):
        plain = dggraph.static(net, path)
        for twin in (reloaded(plain), reloaded(reloaded(plain)), copy.deepcopy(plain)):
            assert [str(one.target) for one in twin.graph.nodes] == [
                str(one.target) for one in plain.graph.nodes
            ]
            with torch.no_grad():
                assert torch.equal(twin(x), plain(x))
            assert list(twin.state_dict()) == list(plain.state_dict())


class Asks(nn.Module):
    """x + F(x), in which dropout asks for the mode, and what runs looks at a size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.dropout(self.conv(x), 0.5, self.training)
        return x + shifted(y)


def shifted(x: Tensor) -> Tensor:
    """Return `x` moved by one, by code that no plain trace can follow."""
    return x + 1 if max(x.shape) > 2 else x


def test_modes_and_functions_stay_as_they_were() -> None:
    net, x = dggraph.convert(randomise(Net(Asks)), images()[:1]).eval(), images()
    plain = dggraph.static(randomise_routers(net), "backbone")
    twin = reloaded(plain)
    with torch.no_grad():
        assert torch.equal(twin(x), plain(x))
        outputs = []
        for one in (plain.train(), twin.train()):
            torch.manual_seed(0)
            outputs.append(one(x))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[1], twin.eval()(x))


def test_writes_are_recorded() -> None:
    graph = fx.Graph(tracer_cls=ReloadingTracer)
    x = graph.placeholder("x")
    y = graph.call_function(torch.clone, (x,))
    graph.call_function(operator.iadd, (y, 1))
    graph.call_function(operator.setitem, (y, 0, 5))
    graph.output(y)
    module = fx.GraphModule(nn.Module(), graph)
    assert torch.equal(module(torch.zeros(2)), torch.tensor([5.0, 1.0]))
    assert torch.equal(reloaded(module)(torch.zeros(2)), torch.tensor([5.0, 1.0]))
