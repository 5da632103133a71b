"""A real run in a process of its own: killed anywhere, its row is that of an undisturbed one."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_comparison import write_comparison

from dggraph.comparing.plan import read_plan
from dggraph.comparing.queue import run_queue
from dggraph.comparing.worker import StepTimes, source_digest
from dggraph.training.loop import train

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
METHODS = "[methods.static]\nrouter = 'none'\n[methods.node]\nrouter_lr = 0.005\n"
SAME = ("accuracy", "train_loss", "steps", "kept", "num_paths", "path_entropy_bits", "macs")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import `toy_data` as well."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HELPERS), os.getcwd()]))


def test_a_killed_queue_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    file = write_comparison(tmp_path / "killed", METHODS, seeds="[0]")
    plan = read_plan(file)
    static, _ = plan.runs
    process = subprocess.Popen([sys.executable, "-m", "dggraph", "compare", str(file)])
    while not list(static.folder.glob("checkpoints/0*")):
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not plan.rows_file.exists()
    assert run_queue(plan, jobs=2).num_done == 2
    rows: dict[str, Any] = {}
    for line in plan.rows_file.read_text().splitlines():
        row = json.loads(line)
        rows[row["method"]] = row
    for run in plan.runs:
        config = run.config.model_copy(update={"output": tmp_path / "whole"})
        result = train(config)
        assert result.evaluation is not None
        metrics = (result.folder / "metrics.jsonl").read_bytes()
        assert (run.folder / "metrics.jsonl").read_bytes() == metrics
        judged = result.evaluation.row()
        row = rows[run.method]
        assert row["accuracy"] == judged["accuracy"]
        assert row["num_paths"] == judged.get("num_paths")
        losses = [json.loads(line).get("loss") for line in metrics.splitlines()]
        last = [loss for loss in losses if loss is not None][-2:]  # a tenth of 18 steps
        assert row["train_loss"] == pytest.approx(sum(last) / 2, rel=1e-12)
        assert row["steps"] == 18
        assert row["keys"] == json.loads(json.dumps(run.config.fingerprint()))
        assert row["versions"]["source"] == source_digest()
        assert not (run.folder / "checkpoints").exists()
    assert rows["static"]["macs"] == rows["static"]["static_macs"]
    assert "mean_adjacency_accuracy" in rows["node"]
    assert "mean_adjacency_accuracy" not in rows["static"]


def test_step_times_leave_out_evaluations_and_survive(tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, 3.0, 100.0, 108.0, 200.0, 201.0]).__next__
    times = StepTimes(tmp_path / "times.jsonl", clock)
    assert times.median() is None
    for step in (1, 2, 4):
        times.note({"step": step, "loss": 1.0})
    times.note({"step": 4, "accuracy": 0.5})
    for step in (5, 9):
        times.note({"step": step, "loss": 1.0})
    assert times.median() == 1.0  # of 1 s, 1 s and 2 s a step
    later = StepTimes(tmp_path / "times.jsonl", clock)
    for step in (10, 11):
        later.note({"step": step, "loss": 1.0})
    assert later.median() == 1.0


def test_a_run_that_cannot_begin_is_a_row_with_its_error(tmp_path: Path) -> None:
    text = "[methods.static]\nrouter = 'none'\nmodel = 'resnet19'\n"
    plan = read_plan(write_comparison(tmp_path, text, seeds="[0]"))
    assert run_queue(plan).num_failed == 1
    (row,) = map(json.loads, plan.rows_file.read_text().splitlines())
    assert row["error"]["type"] == "UnknownModelError"
    assert "resnet18" in row["error"]["message"]
