"""Names that Python, fx or a GraphModule have taken: a layer may have them, and its state-dict keys stay."""

import copy
from pathlib import Path

import pytest
import torch
from reference import randomise_routers
from small import Block, Net, X
from torch import Tensor, nn

import dggraph

TAKEN = (
    "output",
    "self",
    "input",
    "class",
    "None",
    "print",
    "graph",
    "code",
    "recompile",
    "meta",
    "_graph",
    "dg_training",
    "torch",
)


class LastLayer(Net):
    """The last layer, a parameter or a buffer bears the name."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.name, self.kind = name, kind
        if kind == "layer":
            self.add_module(name, nn.Linear(5, 5))
        elif kind == "parameter":
            self.register_parameter(name, nn.Parameter(torch.linspace(0, 1, 5)))
        else:
            self.register_buffer(name, torch.linspace(0, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.kind == "layer":
            return self._modules[self.name](logits)
        return logits + (self._parameters[self.name] if self.kind == "parameter" else self._buffers[self.name])


class InBlock(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, Block())

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self._modules[self.name](x))


class Stages(Net):
    """The blocks themselves bear the name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, self.blocks)
        del self.blocks

    def features(self, x: Tensor) -> Tensor:
        return self._modules[self.name](self.stem(x))


def check(model: nn.Module) -> None:
    model.eval()
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), model(X)) and net.report.num_blocks == 3
    assert set(model.state_dict()) <= set(net.lowered.state_dict())
    randomise_routers(net)
    with torch.no_grad():
        net.executor = "dense"
        dense = net(X)
        net.executor = "sparse"
        assert (net(X) - dense).abs().max() <= 1e-5 * dense.abs().max()
        assert torch.equal(copy.deepcopy(net)(X), net(X))


@pytest.mark.parametrize("name", TAKEN)
def test_what_layers_are_called(name: str) -> None:
    model = LastLayer(name, "layer")
    model.blocks = nn.Sequential(*(InBlock(name) for _ in range(3)))
    check(model)


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
@pytest.mark.parametrize("name", ["output", "self", "class", "graph"])
def test_what_parameters_and_buffers_are_called(name: str, kind: str) -> None:
    check(LastLayer(name, kind))


@pytest.mark.parametrize("name", ["in", "graph"])
def test_what_the_blocks_are_called(name: str) -> None:
    check(Stages(name))


def test_archives_keep_the_names(tmp_path: Path) -> None:
    for index, name in enumerate(("graph", "class")):
        net = dggraph.convert(Stages(name).eval(), X).eval()
        dggraph.save(net, tmp_path / str(index))
        assert torch.equal(dggraph.load(tmp_path / str(index), model=Stages(name))(X), net(X))
