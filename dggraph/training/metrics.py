"""The reports of a run in progress: rows of numbers, one JSON object per line, and a page.

- RUN/metrics.jsonl: losses, rates, accuracy and MACs; identical for an interrupted run.
- RUN/timing.jsonl: durations.
- RUN/summary.html: a page with both, the keys and the machine.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dggraph.errors import DggraphWarning, InputError, TrainingError
from dggraph.system.files import write_whole
from dggraph.training.budget_verdict import judge_budget
from dggraph.training.config import TrainConfig
from dggraph.views.training_summary import Record, write_summary

METRICS, TIMING, SUMMARY = "metrics.jsonl", "timing.jsonl", "summary.html"


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append a row to `file`.

    Raises:
        TrainingError: it cannot be written; a part of the row may have been.
    """
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
    except OSError as error:
        raise TrainingError(
            f"cannot write {file}: {error.strerror or error}. Free some space there; the same call"
            " goes on from the last checkpoint."
        ) from error


def sync_rows(file: Path) -> int:
    """Sync `file` to the disk and return its size in bytes, 0 if it does not exist.

    A checkpoint can rely on that size.
    """
    if not file.exists():
        return 0
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_size


def cut_rows(file: Path, size: int) -> str:
    """Truncate `file` to the complete rows in its first `size` bytes.

    A missing file is created. After a power cut a file may be shorter than its synced size, or
    contain zeros.

    Returns:
        A sentence about rows that are lost, or an empty string.
    """
    content = file.read_bytes() if file.exists() else None
    kept = b""
    for line in (content or b"")[:size].splitlines(keepends=True):
        if not line.endswith(b"\n") or _row(line) is None:
            break
        kept += line
    if content is None:
        file.write_bytes(b"")
    elif len(kept) != len(content):
        os.truncate(file, len(kept))
    if len(kept) == size:
        return ""
    if content is None:
        return (
            f"{file.name} is missing, so a new one was started: the run's earlier rows are lost,"
            " its weights are not"
        )
    rows = kept.count(b"\n")
    return (
        f"{file.name} was damaged or cut off after row {rows}: {size - len(kept)} bytes of the"
        " run's rows are lost, its weights are not"
    )


@contextmanager
def dispensable(file: Path) -> Iterator[None]:
    """Within this context, failing to write `file` is a warning, and the run goes on.

    It is for files that only report on the run.
    """
    try:
        yield
    except (OSError, InputError, TrainingError) as error:
        warnings.warn(f"the run goes on without {file.name}: {error}", DggraphWarning, stacklevel=3)


def read_rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of `file`, and the number of lines that are not valid rows.

    A process may have died while it wrote one. A missing file has no rows.
    """
    rows, num_unreadable = [], 0
    for line in file.read_bytes().splitlines() if file.exists() else ():
        row = _row(line)
        if row is None:
            num_unreadable += 1
        else:
            rows.append(row)
    return rows, num_unreadable


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def make_page(folder: Path) -> str:
    """Return the page of the run in `folder`, made only from the files there."""
    (metrics, num_damaged), (timing, num_others) = (
        read_rows(folder / METRICS),
        read_rows(folder / TIMING),
    )
    keys = json.loads((folder / "config.json").read_bytes())
    budget = judge_budget(TrainConfig.model_validate_json(json.dumps(keys)), metrics)
    record = Record(
        name=folder.name,
        config=keys,
        budget_message=budget.message if budget else "",
        is_budget_missed=budget is not None and not budget.is_met,
        defaults=TrainConfig.model_validate({"model": ""}).model_dump(
            mode="json", exclude={"model"}
        ),
        environment=json.loads((folder / "environment.json").read_bytes()),
        metrics=metrics,
        timing=timing,
        num_unreadable=num_damaged + num_others,
    )
    return write_summary(record)


def update_page(folder: Path) -> None:
    """Replace RUN/summary.html atomically; a failure does not stop the run."""
    with dispensable(folder / SUMMARY):
        write_whole(folder / SUMMARY, make_page(folder).encode())
