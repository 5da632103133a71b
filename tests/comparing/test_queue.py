"""The queue: whatever is killed, every run has one row in the end, and none runs twice."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fake_worker
import pytest
import queue_process
from toy_comparison import write_comparison

from dggraph.comparing import queue
from dggraph.comparing.plan import Plan, read_plan
from dggraph.comparing.queue import run_queue
from dggraph.comparing.rows import state_of
from dggraph.errors import InputError
from dggraph.system.locks import locked

STATIC = "[methods.static]\nrouter = 'none'\n"
METHODS = STATIC + "[methods.node]\n[methods.stage]\nrouter = 'stage'\n"


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "WORKER", (sys.executable, fake_worker.__file__))
    monkeypatch.setattr(queue, "PAUSE", 0.005)


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    return [json.loads(line) for line in plan.rows_file.read_text().splitlines()]


def num_lines(plan: Plan, name: str) -> list[int]:
    files = [run.folder / name for run in plan.runs]
    return [len(file.read_text().splitlines()) if file.exists() else 0 for file in files]


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_run_has_a_row(tmp_path: Path, jobs: int) -> None:
    plan = read_plan(write_comparison(tmp_path, METHODS))
    shown: list[Any] = []
    end = run_queue(plan, jobs=jobs, show=lambda run, row, left: shown.append((run.names, left)))
    assert (end.num_done, end.num_failed, end.num_waiting, end.signal) == (6, 0, 0, None)
    rows = rows_of(plan)
    assert Counter((row["method"], row["seed"]) for row in rows) == Counter(
        run.names[0:4:3] for run in plan.runs
    )
    assert all(row["accuracy"] == 0.5 + row["seed"] / 100 for row in rows)
    assert rows[0]["command"].startswith("dggraph train --model dggraph:resnet14_4")
    assert [left for _, left in shown] == [5, 4, 3, 2, 1, 0]
    before = plan.rows_file.read_bytes()
    run_queue(plan, jobs=jobs)
    assert plan.rows_file.read_bytes() == before
    assert num_lines(plan, "starts") == [1] * 6


@pytest.mark.parametrize("seed", [0, 1])
def test_a_queue_killed_at_random_points_goes_on(tmp_path: Path, seed: int) -> None:
    file = write_comparison(tmp_path, METHODS)
    plan, draw, num_kills = read_plan(file), random.Random(seed), 0
    command = [sys.executable, queue_process.__file__, str(file), "2"]
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            # longer each time, so that a slow machine gets through
            process.wait(timeout=0.2 * 1.2**num_kills * draw.uniform(0.8, 1.2))
        except subprocess.TimeoutExpired:
            process.kill()
            num_kills += 1
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if process.returncode == 0:
            break
        assert num_kills < 60
    assert num_kills >= 2
    names = [tuple(row[name] for name in ("method", "seed")) for row in rows_of(plan)]
    assert sorted(names) == sorted(run.names[0:4:3] for run in plan.runs)
    assert max(num_lines(plan, "ends")) == 1, "a run that had ended was started again"
    assert all((run.folder / "progress").read_text() == "." * 10 for run in plan.runs)


def test_a_torn_row_is_cut_off_and_appended_again(tmp_path: Path) -> None:
    plan = read_plan(write_comparison(tmp_path, METHODS))
    run_queue(plan)
    whole = plan.rows_file.read_bytes()
    notes: list[str] = []
    for torn in (whole[:-1], whole[:-40], whole + b'{"method": "sta'):
        plan.rows_file.write_bytes(torn)
        run_queue(plan, note=notes.append)
        assert plan.rows_file.read_bytes() == whole
    assert len(notes) == 3
    assert all("damaged or cut off" in sentence for sentence in notes)
    plan.rows_file.unlink()
    run_queue(plan)
    assert sorted(plan.rows_file.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert num_lines(plan, "starts") == [1] * 6


def test_a_failing_run_is_a_row_and_stops_nothing(tmp_path: Path) -> None:
    text = STATIC + "[methods.fails]\n[methods.dies]\n"
    plan = read_plan(write_comparison(tmp_path, text, seeds="[0]"))
    end = run_queue(plan)
    assert (end.num_done, end.num_failed, end.num_waiting) == (1, 2, 0)
    errors = {row["method"]: row["error"] for row in rows_of(plan) if "error" in row}
    assert errors["fails"]["message"] == "no such thing"
    assert "signal 9 2 times" in errors["dies"]["message"]
    assert "a last word" in errors["dies"]["message"]
    assert run_queue(plan).num_failed == 2
    assert num_lines(plan, "starts") == [1, 1, 2]
    retries = frozenset(state_of(plan).failed)
    run_queue(plan, retries=retries)
    assert num_lines(plan, "starts") == [1, 2, 4]
    assert len(rows_of(plan)) == 5
    assert len(state_of(plan).failed) == 2


def test_a_killed_worker_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = read_plan(write_comparison(tmp_path, STATIC, seeds="[0]"))
    real, killed = queue._ended, []

    def ended(workers: Any) -> Any:
        for run, process in workers.running.items():
            if not killed and (run.folder / "progress").exists():
                process.kill()
                killed.append(run)
        return real(workers)

    monkeypatch.setattr(queue, "_ended", ended)
    assert run_queue(plan).num_done == 1
    assert len(killed) == 1
    assert num_lines(plan, "starts") == [2]


def test_other_keys_are_another_run_and_old_rows_stay(tmp_path: Path) -> None:
    plan = read_plan(write_comparison(tmp_path, METHODS))
    run_queue(plan)
    before = plan.rows_file.read_bytes()
    changed = METHODS.replace("[methods.node]\n", "[methods.node]\nlr = 0.2\n")
    plan = read_plan(write_comparison(tmp_path, changed))
    notes: list[str] = []
    end = run_queue(plan, note=notes.append)
    assert end.num_done == 6
    assert plan.rows_file.read_bytes().startswith(before)
    assert len(rows_of(plan)) == 8
    assert len(notes) == 1
    assert "2 earlier rows" in notes[0]
    assert "node" in notes[0]
    plan = read_plan(write_comparison(tmp_path, METHODS))
    assert len(state_of(plan).done) == 6, "the first keys again: their rows count again"


def test_hours_end_a_queue_that_goes_on(tmp_path: Path) -> None:
    plan = read_plan(write_comparison(tmp_path, METHODS))
    end = run_queue(plan, hours=0.02 / 3600)
    assert end.signal is None
    assert end.num_waiting > 0
    assert run_queue(plan).num_done == 6
    assert len(rows_of(plan)) == 6


def test_a_signal_ends_a_queue_that_goes_on(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, METHODS)
    plan = read_plan(file)
    process = subprocess.Popen([sys.executable, queue_process.__file__, str(file), "1"])
    while not plan.rows_file.exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=900) == 0
    assert 0 < len(rows_of(plan)) < 6
    assert run_queue(plan).num_done == 6
    assert max(num_lines(plan, "ends")) == 1


def test_one_queue_at_a_time(tmp_path: Path) -> None:
    plan = read_plan(write_comparison(tmp_path, METHODS))
    plan.output.mkdir()
    with locked(plan.output), pytest.raises(InputError, match="written by another run"):
        run_queue(plan)


def test_a_queue_in_a_thread_leaves_signals_alone(tmp_path: Path) -> None:
    plan = read_plan(write_comparison(tmp_path, STATIC, seeds="[0]"))
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run_queue, args=(plan,))
    thread.start()
    thread.join(timeout=900)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(rows_of(plan)) == 1
