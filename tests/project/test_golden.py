"""Every pass prints for each kind of network what `golden/` holds; golden.py says how to renew
it.
"""

import re

import pytest
import torch
from golden import FOLDER, NETWORKS, printed
from torch import nn

import dggraph


@pytest.mark.parametrize("name", NETWORKS)
def test_passes_print_what_they_did(name: str) -> None:
    assert printed(name) == (FOLDER / f"{name}.txt").read_text()


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(NETWORKS)


class Namesakes(nn.Module):
    """Names its values as the lowered code names ours."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {name: nn.Conv2d(3, 3, 3, padding=1) for name in ("x0", "in1", "a1", "cache")}
        )
        self.share, self.aggregate, self.training_1 = nn.ReLU(), nn.ReLU(), nn.Flatten()

    def forward(self, column: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            column = layer(column)
        return self.training_1(self.aggregate(self.share(column)))


@pytest.mark.parametrize("router", ["node", "stage"])
def test_ops_print_short_also_where_the_backbone_has_their_names(router: str) -> None:
    torch.manual_seed(0)
    model, images = Namesakes().eval(), torch.rand(2, 3, 8, 8)
    expected = model(images)
    net = dggraph.convert(model, images, router=router)
    assert torch.equal(net(images), expected)
    code = net.lowered.code
    assert set(re.findall(r"dggraph_\w+", code)) <= {"dggraph_ops_gating_column"}
    assert all(f" = {op}(" in code for op in ("share", "aggregate", "stage_cache"))
