"""Rows of finished runs: JSON lines that are on disk before the next run begins.

A row is appended with one write and synced. A process killed in the middle leaves a torn last line,
which the next one cuts off; the run's own folder still has its row, so it is appended again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dggraph.comparing.plan import Plan, PlannedRun, digest_of
from dggraph.errors import InputError
from dggraph.training.metrics import cut_rows, read_rows

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """What is known of each run of a plan."""

    done: dict[PlannedRun, Row]
    failed: dict[PlannedRun, Row]
    waiting: tuple[PlannedRun, ...]
    foreign: tuple[Row, ...]
    """Rows of runs that the plan has no more, or has with other keys."""


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append `row` to `file`, and sync it.

    Raises:
        InputError: it cannot be written; a part of it may have been.
    """
    try:
        with file.open("ab") as stream:
            stream.write(json.dumps(row).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {file}: {error.strerror or error}. Free some space there; the same"
            " command goes on."
        ) from error


def recover(file: Path) -> str:
    """Cut a torn last line off `file`, and return a sentence if there was one."""
    return cut_rows(file, file.stat().st_size) if file.exists() else ""


def state_of(plan: Plan) -> State:
    """Compare the rows on disk with the plan; of several rows of one run the last one counts."""
    rows, _ = read_rows(plan.rows_file)
    found: dict[Any, Row] = {}
    foreign = []
    wanted = {key_of(run): run for run in plan.runs}
    for row in rows:
        key = key_of_row(row)
        if key in wanted:
            found[key] = row
        else:
            foreign.append(row)
    done: dict[PlannedRun, Row] = {}
    failed: dict[PlannedRun, Row] = {}
    for key, row in found.items():
        (failed if "error" in row else done)[wanted[key]] = row
    waiting = tuple(run for key, run in wanted.items() if key not in found)
    return State(done, failed, waiting, tuple(foreign))


def key_of(run: PlannedRun) -> tuple[Any, ...]:
    """What a row must share with a planned run to be its result."""
    return (*run.names, run.digest)


def key_of_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same of a row."""
    names = (row.get(name) for name in ("method", "family", "data", "seed", "budget"))
    return (*names, digest_of(row.get("keys", {})))


def describe_foreign(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence about rows that are not of this plan, or an empty string."""
    methods = dict.fromkeys(str(row.get("method")) for row in rows)
    number = len(list(rows))
    if not number:
        return ""
    names = ", ".join(list(methods)[:5]) + (", ..." if len(methods) > 5 else "")
    return (
        f"{number} earlier rows are of runs that the configuration no longer has, or has with other"
        f" keys ({names}). They are kept and not used"
    )
