"""Rows of a comparison that nobody ran, and the plan that they belong to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toy_comparison import write_comparison

from dggraph.comparing.plan import Plan, PlannedRun, read_plan
from dggraph.training.commands import command_of

PLAN = """
[families.small]
model = "dggraph:resnet14_4"
[data.easy]
data_dir = "easy"
[data.hard]
data_dir = "hard"
[methods.static]
router = "none"
[methods.node]
[methods.edges]
router = "stage"
[methods.short]
router = "none"
model = "dggraph:resnet8_4"
"""
TOP = 'controls = ["edges"]\ncurve = ["static", "short"]\n'

Accuracy = Callable[[PlannedRun], float | None]


def plan_with_rows(
    folder: Path, accuracy: Accuracy, *, text: str = PLAN, seeds: str = "[0, 1, 2]"
) -> Plan:
    """Write a row for each run: `accuracy` in percent, or an error where that is None.

    Runs whose accuracy is NaN have no row.
    """
    plan = read_plan(write_comparison(folder, text, seeds=f"{seeds}\n{TOP}"))
    plan.output.mkdir(parents=True)
    with plan.rows_file.open("w") as stream:
        for run in plan.runs:
            percent = accuracy(run)
            if percent is None or percent == percent:
                stream.write(json.dumps(row_of(run, percent)) + "\n")
    return plan


def row_of(run: PlannedRun, percent: float | None) -> dict[str, Any]:
    names = dict(zip(("method", "family", "data", "seed", "budget"), run.names, strict=True))
    row: dict[str, Any] = names | {"keys": run.config.fingerprint(), "digest": run.digest}
    row["command"] = command_of(run.config)
    if percent is None:
        return row | {"error": {"type": "TrainingError", "message": "the loss is not finite"}}
    is_dynamic = run.config.router != "none"
    row |= {"accuracy": percent / 100, "parameters": 5000, "static_macs": 1_000_000}
    row["macs"] = 600_000 if run.method == "short" else 1_000_000 + 10_000 * is_dynamic
    row |= {"train_loss": 0.25, "training_time_ratio": 1.5, "num_paths": 7 if is_dynamic else None}
    if is_dynamic:
        row |= {"own_paths_accuracy": 0.9, "mean_adjacency_accuracy": 0.8}
        row["other_image_accuracy"] = 0.7
    return row | {"machine": {"device": "cpu", "name": "x", "threads": 1}}
