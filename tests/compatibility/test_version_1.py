"""Archives of the first version load for ever, and compute what they computed.

They were written by the first version of dggraph, and never change. A JSON file beside each archive
has what its network gave there: outputs for `torch.linspace(-1, 1, ...)`, MACs of both images, and
the graph.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dggraph
from dggraph.errors import ArchiveError

FOLDER = Path(__file__).parent / "version_1"
NAMES = ("kept", "lifted-bare", "scratch-sigmoid", "stage-window-budgets")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).tanh()


class Chain(nn.Module):
    """The backbone of `lifted-bare`, which is in no registry."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(4) for _ in range(4)))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def load(name: str) -> Any:
    return dggraph.load(FOLDER / name, Chain() if name == "lifted-bare" else None)


def test_every_archive_is_tested() -> None:
    assert {entry.name for entry in FOLDER.iterdir() if entry.is_dir()} == set(NAMES)
    for name in NAMES:
        assert json.loads((FOLDER / name / "manifest.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize("executor", ["dense", "sparse"])
@pytest.mark.parametrize("name", NAMES)
def test_it_gives_what_it_gave(name: str, executor: str) -> None:
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    net = load(name)
    net.executor = executor
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        output = net(x)
    # another version of torch, or another processor, may add in another order
    wanted = torch.tensor(expected["outputs"], dtype=torch.float64)
    torch.testing.assert_close(output.double(), wanted, rtol=1e-5, atol=1e-6)
    assert dggraph.record(net, x, batch_size=1).macs.tolist() == expected["macs"]
    assert str(net.graph) == expected["graph"]


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_it_is_the_same_network(name: str, tmp_path: Path) -> None:
    net = load(name)
    net.save_pretrained(tmp_path / "again")
    backbone = Chain() if name == "lifted-bare" else None
    again = dggraph.from_pretrained(tmp_path / "again", backbone)
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    assert torch.equal(again(x), net(x))


def test_everything_else_in_it_is_read() -> None:
    net = load("stage-window-budgets")
    assert net.labels == tuple(f"class {number} <&>" for number in range(10))
    assert net.preprocess is not None
    assert net.preprocess.input_size == (3, 16, 16)
    assert net.budgets is not None
    assert [budget.target for budget in net.budgets.budgets] == [0.9, 1.0]
    assert net.weights_origin == "unknown"
    net.set_budget(1.0)


def test_a_bare_module_is_asked_for() -> None:
    with pytest.raises(ArchiveError, match="model="):
        dggraph.load(FOLDER / "lifted-bare")
