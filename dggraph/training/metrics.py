"""What is told of a run while it goes on: rows of numbers, one JSON object a line, and the page
made of them.

RUN/metrics.jsonl        what was computed: losses, rates, accuracy, MACs; the same for a run that
was interrupted RUN/timing.jsonl         how long it took RUN/summary.html         both to look at,
with the keys and the machine
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
from dggraph.training.config import TrainConfig
from dggraph.views.training_summary import Record, write_summary

METRICS, TIMING, SUMMARY = "metrics.jsonl", "timing.jsonl", "summary.html"


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """
    Raises:
        TrainingError: it cannot be written; half of a row may be.
    """
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
    except OSError as error:
        raise TrainingError(
            f"cannot write {file}: {error.strerror or error}. Make room there; the same call goes"
            " on from the last checkpoint."
        ) from error


def sync_rows(file: Path) -> int:
    """The size of `file` in bytes, 0 where there is none, once all of it is on the disk: what a
    checkpoint may count on.
    """
    if not file.exists():
        return 0
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_size


def cut_rows(file: Path, size: int) -> str:
    """Leave in `file` the whole rows among its first `size` bytes; a sentence about what is not
    there that should be, or nothing.

    A file that is gone is begun anew. After a power cut one may be shorter than what was synced
    says, or have zeros in it.
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
            f"{file.name} is gone, so it begins anew: the run's earlier rows are lost, its weights"
            " are not"
        )
    rows = kept.count(b"\n")
    return (
        f"{file.name} was damaged or cut off behind row {rows}: {size - len(kept)} bytes of the"
        " run's rows are lost, its weights are not"
    )


@contextmanager
def dispensable(file: Path) -> Iterator[None]:
    """Within this context `file`, which only tells of the run, may fail to be written: a warning
    says so, and the run goes on.
    """
    try:
        yield
    except (OSError, InputError, TrainingError) as error:
        warnings.warn(f"the run goes on without {file.name}: {error}", DggraphWarning, stacklevel=3)


def read_rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of `file`, none where there is no such file, and how many lines are not rows: a
    process may have died while it wrote one.
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
    """The page of the run in `folder`, which follows from the files there alone."""
    (metrics, num_damaged), (timing, num_others) = (
        read_rows(folder / METRICS),
        read_rows(folder / TIMING),
    )
    record = Record(
        name=folder.name,
        config=json.loads((folder / "config.json").read_bytes()),
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
    """Replace RUN/summary.html; who has it open reads the old one or the new one. A run goes on
    where that fails.
    """
    with dispensable(folder / SUMMARY):
        write_whole(folder / SUMMARY, make_page(folder).encode())
