"""The model that chooses how a batch of several patterns runs, against counts by hand."""

import pytest
import torch
from kinds import converted
from torch import Tensor, nn

import dggraph
from dggraph.network import execution
from dggraph.network.gate_contexts import pinned_gates
from dggraph.ops import kernels
from dggraph.ops.liveness import Topology
from dggraph.ops.stage_costs import (
    RATES,
    WAYS,
    BlockSize,
    Overheads,
    choose_way,
    forced_way,
    noted_ways,
    overheads,
    predict,
)
from dggraph.ops.stage_plans import PatternPlan, StagePlans

TOPOLOGY = Topology((0, 0, 1, 0, 1, 2), (1, 2, 2, 3, 3, 3))
"""v0, two blocks, out, and every edge."""
BLOCKS = (BlockSize(3, 10.0), BlockSize(5, 20.0))


@pytest.fixture(scope="module")
def plans() -> dict[str, PatternPlan]:
    found = StagePlans(TOPOLOGY)
    rows = {"both": [1, 0, 1, 0, 0, 1], "first": [1, 0, 0, 0, 1, 0], "none": [0, 0, 0, 1, 0, 0]}
    return {name: found.find(row, 0.5) for name, row in rows.items()}


def test_groups_call_blocks_for_each_pattern(plans: dict[str, PatternPlan]) -> None:
    patterns = {plans["both"]: 3, plans["first"]: 2, plans["none"]: 1}
    assert overheads(BLOCKS, patterns, 500, "groups") == Overheads(
        ops=3 + 5 + 3, weights=10 + 20 + 10, copied=2 * 6 * 0.5, sums=0, gathered=0
    )


def test_rows_call_blocks_once_and_gather(plans: dict[str, PatternPlan]) -> None:
    patterns = {plans["both"]: 3, plans["first"]: 2, plans["none"]: 1}
    assert overheads(BLOCKS, patterns, 500, "rows") == Overheads(
        ops=3 + 5, weights=10 + 20, copied=0, sums=3, gathered=(3 * 3 + 2 * 2 + 1) * 0.5
    )
    patterns = {plans["first"]: 2, plans["none"]: 1}
    assert overheads(BLOCKS, patterns, 500, "rows") == Overheads(
        ops=3, weights=10, copied=0, sums=2, gathered=(2 * 2 + 1) * 0.5
    )


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
def test_the_prediction_weighs_each_count(rates: Overheads) -> None:
    assert predict(Overheads(1, 0, 0, 0, 0), rates) == rates.ops
    assert predict(Overheads(1, 2, 3, 4, 5), rates) == pytest.approx(
        rates.ops + 2 * rates.weights + 3 * rates.copied + 4 * rates.sums + 5 * rates.gathered
    )
    assert min(rates) >= 0


def test_the_cheaper_way_is_chosen(
    plans: dict[str, PatternPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of many ops are called once; small ones as often as spares the gathering."""
    patterns, entry = {plans["both"]: 2, plans["first"]: 2}, torch.zeros(4, 500)
    for is_usable in (False, True):
        monkeypatch.setattr(kernels, "is_usable", lambda _, is_usable=is_usable: is_usable)
        large = (BlockSize(100, 1e4), BlockSize(100, 1e4))
        assert choose_way((BlockSize(1, 1.0), BlockSize(1, 1.0)), patterns, entry) == "groups"
        assert choose_way(large, patterns, entry) == "rows"
    between = (BlockSize(30, 1.0), BlockSize(30, 1.0))  # kernels gather faster
    assert choose_way(between, patterns, entry) == "rows"
    monkeypatch.setattr(kernels, "is_usable", lambda _: False)
    assert choose_way(between, patterns, entry) == "groups"


def test_choices_are_counted_within_a_context(plans: dict[str, PatternPlan]) -> None:
    patterns, entry = {plans["both"]: 2, plans["first"]: 2}, torch.zeros(4, 500)
    with noted_ways() as noted:
        chosen = [choose_way(BLOCKS, patterns, entry) for _ in range(3)]
    choose_way(BLOCKS, patterns, entry)
    assert noted == {chosen[0]: 3}


def test_a_forced_way_ends_with_its_context(plans: dict[str, PatternPlan]) -> None:
    patterns, entry = {plans["both"]: 2, plans["first"]: 2}, torch.zeros(4, 500)
    chosen = choose_way(BLOCKS, patterns, entry)
    for way in WAYS:
        with noted_ways() as noted, forced_way(way):
            assert choose_way(BLOCKS, patterns, entry) == way
        assert not noted  # it was not chosen
        with pytest.raises(KeyError, match="within"), forced_way(way):
            raise KeyError("within")
        assert choose_way(BLOCKS, patterns, entry) == chosen


@pytest.mark.parametrize("kind", ["kept", "lifted", "tokens"])
def test_a_batch_is_the_same_function_in_every_way(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = converted(kind, "stage")
    with torch.no_grad():
        for parameter in net.lowered.dg_layers.parameters():
            parameter.normal_(std=2.0)
    x = torch.randn(6, 3, 16, 16) * torch.logspace(-1, 1, 6)[:, None, None, None]
    grouped = []
    run_groups = execution._run_groups
    monkeypatch.setattr(
        execution, "_run_groups", lambda *given: grouped.append(given) or run_groups(*given)
    )
    with torch.inference_mode():
        expected = torch.cat([net(image[None]) for image in x])
        for way, is_grouped in (("groups", True), ("rows", False)):
            grouped.clear()
            with forced_way(way):
                y, gates = net(x, return_gates=True)
            assert bool(grouped) == is_grouped
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    assert len({tuple(row) for row in gates.open["layers"].tolist()}) > 1


class Wide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", [[0, 1, 0, 1], [1, 0, 1, 0]])
def test_groups_whose_features_differ_in_type(order: list[int], way: str) -> None:
    """Under autocast, this entry stays in float32, and blocks give bfloat16."""
    stem = nn.Sequential(nn.Conv2d(3, 6, 3), Wide())
    blocks = [nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)) for _ in range(3)]
    x = torch.rand(4, 3, 8, 8)
    net = dggraph.convert(nn.Sequential(stem, *blocks), x, router="stage").eval()
    (stage,) = net.graph.stages
    entry, out = (net.graph.nodes(stage)[place].name for place in (0, -1))
    edges = net.graph.edges(stage)
    paths = torch.tensor(
        [
            [float(edge.is_static) for edge in edges],
            [float((edge.source, edge.target) == (entry, out)) for edge in edges],
        ]
    )
    with (
        torch.no_grad(),
        torch.autocast(x.device.type, torch.bfloat16),
        pinned_gates(net, {stage: paths[order]}),
    ):
        with forced_way(way):
            y = net(x)
        assert net.last_run == "sparse"
        net.executor = "dense"
        assert torch.equal(y, net(x))
