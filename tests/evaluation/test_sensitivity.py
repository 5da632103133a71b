"""What a block is worth, against the plain backbone with that block replaced by nn.Identity, one
image at a time.
"""

import copy

import pytest
import torch
from kinds import KINDS, WIDTH, Backbone
from reference import randomise, randomise_routers
from torch import nn
from torch.utils.data import TensorDataset

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.sensitivity import measure_sensitivity

X, LABELS = (
    torch.randn(13, 3, 16, 16, generator=torch.Generator().manual_seed(3)),
    torch.arange(13) % 5,
)


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("kind", ["kept", "lifted", "tokens"])
def test_every_number_is_that_of_the_backbone_without_the_block(kind: str, router: str) -> None:
    """Routers say something else meanwhile: they must not be asked."""
    model = randomise(KINDS[kind]()).eval()
    net = randomise_routers(
        dggraph.convert(model, torch.zeros(1, 3, 16, 16), router=router)
    ).train()
    found = measure_sensitivity(net, TensorDataset(X, LABELS), batch_size=5)
    assert net.training
    assert net.lowered.layers.training
    with torch.no_grad():
        static = model(X).double()
        assert found.num_images == 13
        assert found.static_top1 == int((static.argmax(1) == LABELS).sum())
        for place, block in enumerate(found.blocks):
            assert (block.stage, block.node) == ("layers", f"layers_{place}")
            without = copy.deepcopy(model)
            without.layers[place] = nn.Identity()
            output = without(X).double()
            assert block.agreement == int((output.argmax(1) == static.argmax(1)).sum())
            assert block.top1 == int((output.argmax(1) == LABELS).sum())
            p, q = static.softmax(1), output.softmax(1)
            assert block.divergence == pytest.approx(
                float((p * (p / q).log()).sum(1).mean()), rel=1e-4, abs=1e-9
            )
            inputs = model.stem(X)
            inputs = inputs.flatten(2).transpose(1, 2) if kind == "tokens" else inputs
            z = model.layers[:place](inputs.clone()).clone()
            branch = model.layers[place](z.clone()) - z
            assert block.branch_energy == pytest.approx(
                float(branch.square().sum() / z.square().sum()), rel=1e-4
            )
    assert any(block.agreement < 13 for block in found.blocks), "else nothing was compared"


class Twice(nn.Module):
    """Two residuals in one block, as a transformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.second(torch.relu(x))


def test_the_branch_of_a_block_with_two_residuals_is_both() -> None:
    model = randomise(Backbone(nn.Sequential(*(Twice() for _ in range(3))))).eval()
    net = dggraph.convert(model, torch.zeros(1, 3, 16, 16), residual="lift")
    assert net.graph.stages["layers"].residual == "lift"
    found = measure_sensitivity(net, TensorDataset(X, LABELS))
    with torch.no_grad():
        for place, block in enumerate(found.blocks):
            z = model.layers[:place](model.stem(X))
            branch = model.layers[place](z) - z
            assert block.branch_energy == pytest.approx(
                float(branch.square().sum() / z.square().sum()), rel=1e-4
            )


def test_what_is_saved_by_hand() -> None:
    """A kept block of 8 channels at 8x8: two 3x3 convolutions of 36,864 MACs each, and nothing else
    where the `stage` router stays.

    Its edge in and its edge out hand on 512 elements each, the edge past it 512: 512 are saved too.
    With `node` routers also its router, 8 channels by the number of edges that leave it.
    """
    model = randomise(KINDS["kept"]())
    for router, num_routed in (("stage", (0, 0, 0)), ("node", (8 * 3, 8 * 2, 8 * 1))):
        net = dggraph.convert(model, torch.zeros(1, 3, 16, 16), router=router)
        found = measure_sensitivity(net, TensorDataset(X, LABELS), batch_size=13)
        for block, routed in zip(found.blocks, num_routed, strict=True):
            assert block.saved * net.macs_table.static == pytest.approx(2 * 36_864 + 512 + routed)


def test_without_labels_there_is_no_accuracy() -> None:
    net = dggraph.convert(randomise(KINDS["concat"]()), torch.zeros(1, 3, 16, 16))
    found = measure_sensitivity(net, TensorDataset(X, torch.full((13,), -1)), has_labels=False)
    assert found.static_top1 is None
    assert all(block.top1 is None for block in found.blocks)
    assert all(block.divergence > 0 and block.saved > 0 for block in found.blocks)
    assert all(block.branch_energy is None for block in found.blocks), (
        "a layer of a growing concat has another shape than its input"
    )


def test_blocks_that_the_wiring_leads_past_only() -> None:
    net = dggraph.convert(
        randomise(KINDS["kept"]()), torch.zeros(1, 3, 16, 16), wiring=[("layers_0", "layers_2")]
    )
    found = measure_sensitivity(net, TensorDataset(X, LABELS))
    assert [block.node for block in found.blocks] == ["layers_1"]
    assert found.unskippable == (
        "layers_0",
        "layers_2",
    )
    with pytest.raises(InputError, match="no images"):
        measure_sensitivity(net, TensorDataset(X[:0], LABELS[:0]))
