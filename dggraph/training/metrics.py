"""What is told of a run while it goes on: rows of numbers, one JSON object a line, and the page made of them.

RUN/metrics.jsonl        what was computed: losses, rates, accuracy, MACs; the same for a run that was interrupted
RUN/timing.jsonl         how long it took
RUN/summary.html         both to look at, with the keys and the machine
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dggraph.runtime.durable import write_whole
from dggraph.training.config import TrainConfig
from dggraph.views.summary import Record, write_summary

METRICS, TIMING, SUMMARY = "metrics.jsonl", "timing.jsonl", "summary.html"


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of `file`, none where there is no such file, and how many lines are no rows: a process may have died while it wrote one."""
    rows, num_unreadable = [], 0
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            num_unreadable += 1
    return rows, num_unreadable


def make_page(folder: Path) -> str:
    """The page of the run in `folder`, which follows from the files there alone."""
    (metrics, num_damaged), (timing, num_others) = read_rows(folder / METRICS), read_rows(folder / TIMING)
    record = Record(
        name=folder.name,
        config=json.loads((folder / "config.json").read_bytes()),
        defaults=TrainConfig.model_validate({"model": ""}).model_dump(mode="json", exclude={"model"}),
        environment=json.loads((folder / "environment.json").read_bytes()),
        metrics=metrics,
        timing=timing,
        num_unreadable=num_damaged + num_others,
    )
    return write_summary(record)


def update_page(folder: Path) -> None:
    """Replace RUN/summary.html; who has it open reads the old one or the new one."""
    write_whole(folder / SUMMARY, make_page(folder).encode())
