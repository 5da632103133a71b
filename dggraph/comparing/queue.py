"""The queue of a comparison: a process for each run, rows as they come, and a way to go on.

Whatever is killed, nothing is lost and nothing runs twice: a run resumes from its last checkpoint,
a finished run has its row in its own folder before it is appended to the others, and only one queue
at a time writes to an output folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dggraph.comparing.plan import Plan, PlannedRun
from dggraph.comparing.rows import (
    Row,
    append_row,
    describe_foreign,
    key_of,
    key_of_row,
    recover,
    state_of,
)
from dggraph.system.locks import locked
from dggraph.system.signals import noting_signals
from dggraph.training.commands import command_of

JOB, ROW, LOG = "job.json", "row.json", "worker.log"
WORKER = (sys.executable, "-m", "dggraph.comparing.worker")
"""The command of a run; it gets the folder of the run."""
MAX_ATTEMPTS = 2
"""Times that a run is started before its process is taken to fail by itself."""
PATIENCE = 60.0
"""Seconds that processes get to save a checkpoint."""
PAUSE = 0.1

Show = Callable[[PlannedRun, Row, int], None]


@dataclass(frozen=True, slots=True)
class QueueEnd:
    """How a queue ended."""

    num_done: int
    """Runs of the plan that have a result, from this queue or an earlier one."""
    num_failed: int
    num_waiting: int
    signal: int | None
    """The signal that ended it."""


@dataclass(slots=True)
class _Workers:
    """The processes at work, and how often each run was started."""

    running: dict[PlannedRun, subprocess.Popen[bytes]] = field(default_factory=dict)
    attempts: dict[PlannedRun, int] = field(default_factory=dict)


def run_queue(
    plan: Plan,
    *,
    jobs: int = 1,
    threads: int = 1,
    device: str | None = None,
    hours: float | None = None,
    retries: frozenset[PlannedRun] = frozenset(),
    show: Show = lambda run, row, left: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> QueueEnd:
    """Do what is left of a plan, until it is done, `hours` are over, or a signal comes.

    Args:
        plan: the result of `read_plan`.
        jobs: number of processes at a time.
        threads: torch's threads in each.
        device: where networks run; None is a GPU if there is one.
        hours: after these, runs in progress save a checkpoint and the queue ends.
        retries: failed runs to start again.
        show: called with each finished run, its row, and the number of runs that are left.
        note: called with each sentence about facts that users may not expect.

    Raises:
        InputError: another queue writes to the same folder, or rows cannot be written.
    """
    plan.output.mkdir(parents=True, exist_ok=True)
    deadline = None if hours is None else time.monotonic() + 3600 * hours
    with locked(plan.output), noting_signals() as stopped:
        for sentence in (recover(plan.rows_file), describe_foreign(state_of(plan).foreign)):
            if sentence:
                note(sentence)
        waiting = [*_collect(plan), *(run for run in plan.runs if run in retries)]
        for run in retries:
            (run.folder / ROW).unlink(missing_ok=True)
        workers = _Workers()
        with _ending(workers):
            while (waiting or workers.running) and not stopped:
                if deadline is not None and time.monotonic() > deadline:
                    break
                while waiting and len(workers.running) < jobs:
                    _start(workers, waiting.pop(0), threads, device)
                for run in _ended(workers):
                    row = _row_of(run, workers)
                    if row is None:
                        waiting.insert(0, run)
                        continue
                    append_row(plan.rows_file, row)
                    show(run, row, len(waiting) + len(workers.running))
                time.sleep(PAUSE)
        _collect(plan)
    state = state_of(plan)
    return QueueEnd(
        len(state.done), len(state.failed), len(state.waiting), stopped[0] if stopped else None
    )


def _collect(plan: Plan) -> tuple[PlannedRun, ...]:
    """Append the rows of runs that ended without a queue; return the runs without a row."""
    for run in state_of(plan).waiting:
        row = _read_row(run)
        if row is not None:
            append_row(plan.rows_file, row)
    return state_of(plan).waiting


def _read_row(run: PlannedRun) -> Row | None:
    try:
        row: Row = json.loads((run.folder / ROW).read_bytes())
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and key_of_row(row) == key_of(run) else None


def _start(workers: _Workers, run: PlannedRun, threads: int, device: str | None) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    job = {
        "config": run.config.model_dump(mode="json"),
        "baseline_model": run.baseline_model,
        "device": device,
        "row": _row_start(run),
    }
    (run.folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    number = str(threads)
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), number)
    with (run.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [*WORKER, str(run.folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **limits},
            start_new_session=True,  # Ctrl-C in a terminal goes to the queue alone
        )
    workers.running[run] = process
    workers.attempts[run] = workers.attempts.get(run, 0) + 1


def _row_start(run: PlannedRun) -> Row:
    """Return what a row says of the run itself, without its results."""
    names = dict(zip(("method", "family", "data", "seed", "budget"), run.names, strict=True))
    return names | {
        "digest": run.digest,
        "model": run.config.model,
        "keys": run.config.fingerprint(),
        "command": command_of(run.config),
    }


def _ended(workers: _Workers) -> Iterator[PlannedRun]:
    for run, process in list(workers.running.items()):
        if process.poll() is not None:
            _close(process)
            yield run


def _row_of(run: PlannedRun, workers: _Workers) -> Row | None:
    """Return the row of a run whose process has ended; None if it should start once more."""
    process = workers.running.pop(run)
    row = _read_row(run)
    if row is not None:
        return row
    if workers.attempts[run] < MAX_ATTEMPTS:
        return None
    code = process.returncode
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    told = _tail(run.folder / LOG)
    message = f"its process ended by {how} {workers.attempts[run]} times, without a result. {told}"
    return _row_start(run) | {"error": {"type": "LostProcessError", "message": message.strip()}}


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


@contextmanager
def _ending(workers: _Workers) -> Iterator[None]:
    """Ask the processes that are left to save a checkpoint, and wait for them."""
    try:
        yield
    finally:
        for process in workers.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        for process in workers.running.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
