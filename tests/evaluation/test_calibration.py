"""Calibration: thresholds keep on held-out images what the curve says, and only measured points are
promised.
"""

import copy
from pathlib import Path

import pytest
import torch
from reference import randomise_routers
from routed import convert, images, train_routers

import dggraph
from dggraph.errors import ArchiveError, InputError
from dggraph.network.budgets import Budget, BudgetCurve, BudgetPoint, choose
from dggraph.network.network import DynamicNetwork


def kept(net: DynamicNetwork, x: torch.Tensor) -> float:
    return (
        float(dggraph.record(net, x, batch_size=len(x)).macs.double().mean())
        / net.macs_table.static
    )


@pytest.fixture(scope="module")
def spread() -> DynamicNetwork:
    """Routers whose weights differ much from image to image."""
    _, net = convert("kept", "node")
    return randomise_routers(net, 5, 0.4)


def test_thresholds_keep_what_the_curve_says(spread: DynamicNetwork) -> None:
    net = copy.deepcopy(spread).train()
    net.lowered.body[0].eval()
    modes = {name: module.training for name, module in net.named_modules()}
    x = images(200, 0)
    curve = dggraph.calibrate(
        net, [(x[:90], "labels"), (x[90:], "labels")], targets=(0.8, 0.6, 0.4)
    )
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert float(net.lowered.dg_body.threshold) == 0.5
    assert net.budgets is curve
    assert curve.num_instances == 200
    assert [budget.target for budget in curve.budgets] == [0.8, 0.6, 0.4]
    for budget in curve.budgets:
        net.set_budget(budget.target)
        assert float(net.lowered.dg_body.threshold) == budget.threshold
        assert kept(net, x) == pytest.approx(budget.kept, abs=1e-12)
        assert budget.budget_met
        assert abs(budget.kept - budget.target) < 0.02
    for point in curve.points[::3]:
        net.set_threshold(point.threshold)
        assert kept(net, x) == pytest.approx(point.kept, abs=1e-12)


def test_the_curve_comes_back_from_an_archive(spread: DynamicNetwork, tmp_path: Path) -> None:
    net = copy.deepcopy(spread)
    dggraph.calibrate(net, [images(60, 0)], targets=(0.8, 0.2))
    net.set_budget(0.8)
    dggraph.save(net, tmp_path / "a")
    model, other = convert("kept", "node", seed=2)
    twin = dggraph.load(tmp_path / "a", model=model)
    assert twin.budgets == net.budgets
    assert twin.lowered.dg_body.threshold == net.lowered.dg_body.threshold != 0.5
    dggraph.save(other, tmp_path / "b")
    assert dggraph.load(tmp_path / "b", model=model).budgets is None
    file = tmp_path / "a" / "manifest.json"
    file.write_text(file.read_text().replace('"threshold": 0.75', '"threshold": 1.75'))
    with pytest.raises(ArchiveError, match=r"budgets\.points\.\d+\.threshold"):
        dggraph.load(tmp_path / "a", model=model)


def test_what_a_bracket_finds_a_grid_does_not_beat(spread: DynamicNetwork) -> None:
    net, x = copy.deepcopy(spread), images(100, 1)
    (budget,) = dggraph.calibrate(net, [x], targets=(0.55,)).budgets
    distances = []
    for threshold in torch.linspace(0, 0.99, 100).tolist():
        net.set_threshold(threshold)
        distances.append(abs(kept(net, x) - 0.55))
    assert abs(budget.kept - 0.55) <= min(distances) + 0.005


def test_an_untrained_network_has_one_point() -> None:
    """Its weights are 0 and 1, so no threshold changes anything, and it meets no budget below its
    cost.
    """
    _, net = convert("kept", "node")
    curve = dggraph.calibrate(net, [images(8, 0)], targets=(0.7, 1.1))
    assert len(curve.points) == 5
    assert len({point.kept for point in curve.points}) == 1
    assert [budget.budget_met for budget in curve.budgets] == [False, True]
    assert curve.budgets[0].kept == kept(net, images(8, 0)) > 1
    with pytest.raises(InputError, match=r"0\.7 is outside the curve.*1\.020 to 1\.020"):
        net.set_budget(0.7)


def test_choose_prefers_what_meets_the_budget() -> None:
    points = [BudgetPoint(threshold=t, kept=k) for t, k in ((0.0, 1.0), (0.3, 0.75), (0.5, 0.6))]
    assert choose(points, 0.71) == Budget(target=0.71, threshold=0.5, kept=0.6, budget_met=True)
    assert choose(points, 0.74).threshold == 0.3, "0.75 is within the tolerance"
    assert not choose(points, 0.5).budget_met
    assert choose(points, 0.5).kept == 0.6
    curve = BudgetCurve(num_instances=1, points=tuple(points), budgets=())
    assert curve.at(0.59).threshold == 0.5
    assert curve.at(1.01).threshold == 0.0
    for target in (0.55, 1.05, float("nan")):
        with pytest.raises(InputError, match="outside the curve"):
            curve.at(target)


def test_bad_calls(spread: DynamicNetwork) -> None:
    net = copy.deepcopy(spread)
    with pytest.raises(InputError, match="calibrate"):
        net.set_budget(0.7)
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="outside"):
            net.set_threshold(threshold)
    with pytest.raises(InputError, match="used up"):
        dggraph.calibrate(net, iter([images(2, 0)]))
    with pytest.raises(InputError, match="targets"):
        dggraph.calibrate(net, [images(2, 0)], targets=(0.7, -1))
    with pytest.raises(InputError, match="batch"):
        dggraph.calibrate(net, images(2, 0))
    assert float(net.lowered.dg_body.threshold) == 0.5
    assert net.budgets is None


def test_half_precision_thresholds_stay_below_the_static_weights() -> None:
    _, net = convert("lifted", "stage")
    net = net.to(torch.bfloat16)
    curve = dggraph.calibrate(net, [images(4, 0).to(torch.bfloat16)], targets=(0.5,))
    assert {point.kept for point in curve.points} == {curve.budgets[0].kept}, (
        "all edges stay open at every threshold"
    )


def test_a_threshold_moves_a_network_only_along_what_it_was_trained_for() -> None:
    """At 0.7 of the MACs, a net that learned the task without a budget is much further from its
    backbone than one that had it.
    """
    errors = {}
    x = images(512, 9).float()
    for target in (None, 0.7):
        model, net = convert("lifted", "stage", depth=3, seed=2)
        model, net = model.float(), randomise_routers(net.float(), 2, 0.1)
        trained = train_routers(net, model, target, 200, seed=2)
        dggraph.calibrate(net, [images(256, 8).float()], targets=(0.7,))
        net.set_budget(0.7)
        assert abs(kept(net, x) - 0.7) < 0.03
        with torch.no_grad():
            errors[target] = float((net.eval()(x) - model(x)).square().mean() / model(x).var())
    assert trained < 0.2
    assert errors[None] > 2 * errors[0.7]
