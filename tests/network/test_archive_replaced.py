"""Archives of networks whose layers were replaced after conversion."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import Net, X
from torch import Tensor, nn

import dggraph

pytestmark = pytest.mark.cpu


class Scaled(nn.Module):
    """A layer of one's own, which tracing would enter."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = 2 * self.inner(x)
        return scaled


def _with(new: Callable[[], nn.Module]) -> Net:
    model = Net()
    model.head[2] = new()
    return model.eval()


@pytest.mark.parametrize(
    "new", [lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)), Scaled], ids=["layers", "own"]
)
def test_a_backbone_with_the_same_replacement_loads_the_archive(
    tmp_path: Path, new: Callable[[], nn.Module]
) -> None:
    net = dggraph.convert(Net(), X)
    net.head[2] = new()
    net.eval()
    dggraph.save(net, tmp_path / "a")
    once = dggraph.load(tmp_path / "a", model=_with(new))
    dggraph.save(once, tmp_path / "b")
    twice = dggraph.load(tmp_path / "b", model=_with(new))
    for loaded in (once, twice):
        assert torch.equal(loaded(X), net(X))
        assert loaded.train()(X).shape == (len(X), 3)


def test_archives_without_replacements_are_written_as_before(tmp_path: Path) -> None:
    """Version 0.2.0 reads them: it knows no `whole`."""
    net = dggraph.convert(Net(), X)
    net.head[2] = nn.Linear(8, 3)
    dggraph.save(net, tmp_path / "a")
    assert "whole" not in json.loads((tmp_path / "a" / "manifest.json").read_text())
