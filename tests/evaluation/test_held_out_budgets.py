"""Budgets: the threshold comes from one half of the images, every number from the other."""

import pytest
import torch
from kinds import converted
from reference import randomise_routers
from routed import convert, images
from torch.utils.data import Subset, TensorDataset

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.accuracy import evaluate
from dggraph.evaluation.held_out_budgets import evaluate_budgets


def test_thresholds_of_one_half_are_judged_on_the_other() -> None:
    _, net = convert("kept", "node")
    randomise_routers(net, 5, 0.4)
    x = images(81, 0)
    dataset = TensorDataset(x, torch.arange(81) % net(x).shape[1])
    judged = evaluate_budgets(net, dataset, (0.8, 0.6, 0.05), batch_size=16)
    assert judged.curve is net.budgets
    assert judged.curve.num_instances == 41
    assert float(net.lowered.dg_body.threshold) == 0.5
    held_out = Subset(dataset, range(1, 81, 2))
    assert judged.before == evaluate(net, held_out)
    expected = dggraph.calibrate(net, [x[::2]], targets=(0.8, 0.6, 0.05))
    assert [one.target for one in judged.budgets] == [0.8, 0.6, 0.05]
    for one, budget in zip(judged.budgets, expected.budgets, strict=True):
        assert (one.threshold, one.calibrated_kept) == (
            budget.threshold,
            pytest.approx(budget.kept),
        )
        net.set_threshold(budget.threshold)
        assert one.evaluation == evaluate(net, held_out)
        assert one.budget_met == (one.evaluation.kept <= one.target + 0.02)
        assert one.evaluation.kept != pytest.approx(one.calibrated_kept, abs=1e-9), "other images"
    assert not judged.budgets[-1].budget_met
    assert judged.budgets[0].evaluation.kept > judged.budgets[1].evaluation.kept


def test_one_image_has_no_other_half() -> None:
    with pytest.raises(InputError, match="this set has 1; give at least two"):
        evaluate_budgets(
            converted("kept"), TensorDataset(torch.zeros(1, 3, 16, 16), torch.zeros(1)), (0.7,)
        )
