"""The numbers of an evaluation, as a JSON document has them."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dggraph.evaluation.accuracy import Accuracy
    from dggraph.evaluation.held_out_budgets import HeldOutBudgets
    from dggraph.evaluation.sensitivity import Sensitivity
    from dggraph.graph.analysis import Analysis


FORGOTTEN = 0.05
"""Share of the images by which the static path may be worse than a network's own before it is no
longer a reference.
"""


def numbers(found: "Accuracy") -> dict[str, Any]:
    """Return accuracies, counts, MACs and paths."""
    return found.row() | {
        "top5_accuracy": found.top5 / found.num_images,
        "kept_percentiles": found.kept_percentiles,
    }


def class_numbers(found: "Accuracy", classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for every output that has a class or an image."""
    names = [
        *classes,
        *(f"output {label}" for label in range(len(classes), len(found.class_images))),
    ]
    return [
        {
            "class": name,
            "num_images": images,
            "top1": top1,
            "accuracy": top1 / images if images else None,
        }
        for label, (name, images, top1) in enumerate(
            zip(names, found.class_images, found.class_top1, strict=True)
        )
        if images or label < len(classes)
    ]


def budget_numbers(judged: "HeldOutBudgets", halves: str) -> dict[str, Any]:
    """Return the curve of the calibration, and each budget as measured on the other half."""
    calibration = {
        "num_images": judged.curve.num_instances,
        "points": [asdict(point) for point in judged.curve.points],
    }
    targets = [
        {
            "target": one.target,
            "threshold": one.threshold,
            "calibrated_kept": one.calibrated_kept,
            "budget_met": one.budget_met,
        }
        | numbers(one.evaluation)
        for one in judged.budgets
    ]
    return {
        "halves": halves,
        "calibration": calibration,
        "before": numbers(judged.before),
        "targets": targets,
    }


def sensitivity_numbers(costs: "Sensitivity", own_top1: int | None) -> dict[str, Any]:
    """Return what leaving out each block costs."""
    blocks = [
        {
            "stage": block.stage,
            "block": block.node,
            "macs_saved": block.saved,
            "agreement": block.agreement,
            "agreement_fraction": block.agreement / costs.num_images,
            "kl_divergence": _finite(block.divergence),
            "top1": block.top1,
            "top1_change": (
                None
                if block.top1 is None or costs.static_top1 is None
                else block.top1 - costs.static_top1
            ),
            "branch_energy": None if block.branch_energy is None else _finite(block.branch_energy),
        }
        for block in costs.blocks
    ]
    warning = None
    if (
        own_top1 is not None
        and costs.static_top1 is not None
        and own_top1 - costs.static_top1 > FORGOTTEN * costs.num_images
    ):
        warning = (
            f"With every static edge at weight 1 this network has {costs.static_top1} of"
            f" {costs.num_images} right, along its own paths {own_top1}: training has moved its"
            " weights away from the static path, so these rows say nothing about it. Ask the"
            " backbone that it was converted from."
        )
    static = {"num_images": costs.num_images, "static_top1": costs.static_top1, "warning": warning}
    return static | {"blocks": blocks, "unskippable": list(costs.unskippable)}


def _finite(number: float) -> float | None:
    """JSON has neither infinity nor NaN, which a static path that nobody trained may give."""
    return number if math.isfinite(number) else None


def analysis_numbers(found: "Analysis") -> dict[str, Any]:
    """Return an analysis, with what follows from its numbers."""
    swapped = {
        name: asdict(change) | {"difference": change.difference, "half_width": change.half_width}
        for name, change in found.swapped.items()
    }
    return asdict(found) | {
        "swapped": swapped,
        "never_moved": [f"{edge.source} -> {edge.target}" for edge in found.never_moved],
        "composite_gain": found.composite_gain,
    }
