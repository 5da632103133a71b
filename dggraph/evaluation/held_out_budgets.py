"""Held-out budgets: thresholds are calibrated on one half of a set and measured on the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

from dggraph.errors import InputError
from dggraph.evaluation.accuracy import Accuracy, evaluate
from dggraph.evaluation.calibration import calibrate
from dggraph.network.budgets import TOLERANCE, BudgetCurve
from dggraph.network.gate_contexts import own_thresholds
from dggraph.network.network import DynamicNetwork
from dggraph.system import processes
from dggraph.system.loaders import num_samples

HALVES = "calibrated on the images at even places (0, 2, ...), measured on those at odd places"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutBudget:
    """One target, measured on the half that its threshold was not calibrated on."""

    target: float
    threshold: float
    calibrated_kept: float
    """The fraction that the threshold kept on the half for calibration."""
    budget_met: bool
    """Whether `evaluation.kept` is at most target + 0.02."""
    evaluation: Accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutBudgets:
    """The result of `evaluate_budgets`."""

    curve: BudgetCurve
    """Measured on the half for calibration; also stored as `net.budgets`."""
    before: Accuracy
    """The held-out half at the original thresholds of the network."""
    budgets: tuple[HeldOutBudget, ...]


def evaluate_budgets(
    net: DynamicNetwork,
    dataset: Dataset[Any],
    targets: Sequence[float],
    *,
    batch_size: int = 256,
    workers: int = 0,
) -> HeldOutBudgets:
    """Calibrate on the images at even places, and evaluate on those at odd places.

    Thresholds are restored; the curve is stored in `net.budgets`. Every process calibrates on the
    complete half, so that all agree without waiting for one; the processes share the evaluation.

    Args:
        net: a converted network.
        dataset: items (image (C, H, W), label) by index.
        targets: mean MACs as fractions of the static network's.
        batch_size: images per batch.
        workers: number of loader processes.

    Raises:
        InputError: there are fewer than two images; or as for `calibrate` and `evaluate`.
        GateError: an edge weight is NaN.
    """
    num_images = num_samples(dataset)
    if num_images < 2:
        raise InputError(
            "budgets need images to calibrate on and others to measure on, and this set has"
            f" {num_images}; give at least two."
        )
    first, second = (Subset(dataset, range(start, num_images, 2)) for start in (0, 1))
    loader = DataLoader(first, batch_size=batch_size, num_workers=workers)
    calibrate(net, loader, targets=targets)
    curve, *_ = processes.all_gather_objects(net.budgets)
    assert isinstance(curve, BudgetCurve)
    net.budgets = curve
    before = evaluate(net, second, batch_size=batch_size, workers=workers)
    measured = []
    with own_thresholds(net):
        for budget in curve.budgets:
            net.set_threshold(budget.threshold)
            found = evaluate(net, second, batch_size=batch_size, workers=workers)
            assert found.kept is not None
            measured.append(
                HeldOutBudget(
                    target=budget.target,
                    threshold=budget.threshold,
                    calibrated_kept=budget.kept,
                    budget_met=found.kept <= budget.target + TOLERANCE,
                    evaluation=found,
                )
            )
    return HeldOutBudgets(curve=curve, before=before, budgets=tuple(measured))
