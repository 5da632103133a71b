"""Blocks taken out of a backbone: the right ones, and what remains is the backbone without them."""

import copy
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import pytest
import torch
from kinds import converted
from reference import randomise_routers
from small import Net
from torch import Tensor, nn
from torch.nn.functional import kl_div

import dggraph
from dggraph.errors import InputError
from dggraph.models.fewer_blocks import without_blocks

pytestmark = pytest.mark.cpu

WIDTHS = (8, 24, 4, 16)


class Bottleneck(nn.Module):
    """x + s F(x), with as many MACs as it is wide."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.inside = nn.Conv2d(8, width, 1)
        self.outside = nn.Conv2d(width, 8, 1, bias=False)
        with torch.no_grad():
            self.outside.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outside(self.inside(x).relu())


@cache
def made(widths: Sequence[int] = WIDTHS, seed: int = 0) -> tuple[nn.Module, dggraph.DynamicNetwork]:
    """A backbone whose blocks matter by different amounts, in an order that the seed draws."""
    torch.manual_seed(seed)
    scales = 2.0 ** -torch.randperm(len(widths))
    blocks = iter(Bottleneck(width, float(s)) for width, s in zip(widths, scales, strict=True))
    backbone = Net(block=lambda: next(blocks), depth=len(widths)).eval()
    return backbone, dggraph.convert(backbone, torch.zeros(1, 3, 16, 16))


def photos(count: int = 4) -> list[tuple[Tensor, int]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 16, 16, generator=draw), 0) for _ in range(count)]


def cost_of(backbone: nn.Module, paths: Sequence[str]) -> float:
    """The mean divergence of the backbone without these blocks, image by image."""
    smaller, total = without_blocks(backbone, paths), 0.0
    with torch.no_grad():
        for image, _ in photos():
            old, new = (net(image[None]).double().log_softmax(1) for net in (backbone, smaller))
            total += float(kl_div(new, old, reduction="sum", log_target=True))
    return total / len(photos())


@pytest.mark.parametrize("seed", [0, 2])
def test_the_search_finds_what_trying_all_sets_finds(seed: int) -> None:
    backbone, net = made((8, 8, 8, 8), seed)
    block = net.graph.nodes("blocks")[1].macs / net.macs_table.static
    for number in (1, 2):
        thinned = dggraph.thin(net, photos(), budget=1 - (number - 0.5) * block, batch_size=3)
        costs = {
            chosen: cost_of(backbone, [f"blocks.{place}" for place in chosen])
            for chosen in combinations(range(4), number)
        }
        best = min(costs, key=costs.__getitem__)
        assert [one.module_path for one in thinned.removed] == [f"blocks.{n}" for n in best]
        assert thinned.divergence == pytest.approx(costs[best], rel=1e-4)


@pytest.mark.parametrize("budget", [0.9, 0.6])
def test_what_remains_is_the_backbone_without_those_blocks(budget: float) -> None:
    backbone, net = made()
    net = copy.deepcopy(net)
    randomise_routers(net)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    thinned = dggraph.thin(net, photos(), budget=budget)
    plain = without_blocks(backbone, [one.module_path for one in thinned.removed])
    x = torch.stack([image for image, _ in photos()])
    with torch.no_grad():
        assert torch.equal(thinned.module(x), plain(x))
        same = thinned.module(x).argmax(1) == backbone(x).argmax(1)
    assert thinned.agreement == int(same.sum())
    kept, own = thinned.module.state_dict(), backbone.state_dict()
    assert set(kept) == set(plain.state_dict()) < set(own)
    assert all(torch.equal(tensor, own[key]) for key, tensor in kept.items())
    plain.load_state_dict(kept)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("budget", [0.9, 0.75, 0.6])
def test_no_block_that_went_would_still_fit(budget: float) -> None:
    _, net = made()
    thinned = dggraph.thin(net, photos(), budget=budget)
    assert thinned.is_met
    assert thinned.kept == pytest.approx(1 - sum(one.saved for one in thinned.removed))
    assert all(thinned.kept + one.saved > budget for one in thinned.removed)


def test_the_macs_are_those_of_the_smaller_network() -> None:
    backbone, net = made()
    thinned = dggraph.thin(net, photos(), budget=0.7)
    plain = without_blocks(backbone, [one.module_path for one in thinned.removed])
    counts = [
        sum(
            layer.weight.numel() * (64 if isinstance(layer, nn.Conv2d) else 1)
            for layer in model.modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        )
        for model in (plain, backbone)
    ]
    assert thinned.kept == pytest.approx(counts[0] / counts[1])


def test_a_budget_that_cannot_be_met_is_said() -> None:
    _, net = made()
    thinned = dggraph.thin(net, photos(), budget=0.01)
    assert not thinned.is_met
    assert len(thinned.removed) == len(WIDTHS)
    assert "budget 0.01 missed, since no other block can be taken out" in str(thinned)


def test_blocks_that_identity_cannot_replace_stay_and_say_why() -> None:
    plain, image = Net().eval(), torch.zeros(1, 3, 16, 16)
    parts = [part for _ in range(3) for part in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    plain.blocks = nn.Sequential(*parts)
    for net, name, why in (
        (dggraph.convert(plain, image), "blocks_0", "it is not one module that is called once"),
        (converted("concat"), "layers_denselayer1", "its stage grows by concatenation"),
    ):
        with pytest.raises(InputError, match=f"{name}: {why}"):
            dggraph.thin(net, photos(), budget=0.7)
    wired = dggraph.convert(Net().eval(), image, wiring="window(1)+entry")
    thinned = dggraph.thin(wired, photos(), budget=0.9)
    assert ("blocks_1", "the wiring has no edge around it") in thinned.fixed
    assert "blocks_1 stays: the wiring has no edge around it" in str(thinned)
    adapted = dggraph.thin(converted("adapter"), photos(), budget=0.9)
    assert ("layers_1", "it changes the shape") in adapted.fixed


@pytest.mark.parametrize("budget", [0, 1, 1.5, -0.2, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    _, net = made()
    with pytest.raises(InputError, match=r"budget=.* is not a fraction of the backbone's MACs"):
        dggraph.thin(net, photos(), budget=budget)


def test_what_cannot_be_searched_is_refused() -> None:
    backbone, net = made()
    with pytest.raises(InputError, match="no images to choose blocks on"):
        dggraph.thin(net, [], budget=0.7)
    added = dggraph.convert(backbone, torch.zeros(1, 3, 16, 16), aggregation="additive")
    with pytest.raises(InputError, match="aggregation='additive' adds something to plain sums"):
        dggraph.thin(added, photos(), budget=0.7)


def test_a_path_without_a_module_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Net has no module 'blocks\.9' to leave out"):
        without_blocks(Net(), ["blocks.9"])
