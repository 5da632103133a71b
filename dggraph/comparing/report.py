"""The report of a comparison: one page, the same numbers as JSON, and as Markdown."""

import json
from dataclasses import asdict
from pathlib import Path

from dggraph.comparing.plan import Plan
from dggraph.comparing.rows import state_of
from dggraph.comparing.summary import summarise
from dggraph.system.files import write_whole
from dggraph.views.comparison_numbers import ComparisonSummary
from dggraph.views.comparison_page import write_comparison, write_markdown

NAMES = {"html": "comparison.html", "json": "comparison.json", "markdown": "comparison.md"}


def write_report(plan: Plan, command: str) -> tuple[ComparisonSummary, tuple[Path, ...]]:
    """Write the three files into the output folder, from the rows that are there.

    Args:
        plan: the comparison; it may be in progress.
        command: the command that runs it.

    Returns:
        The numbers, and the files.

    Raises:
        InputError: a file cannot be written.
    """
    summary = summarise(plan, state_of(plan), command)
    document = {"rows": str(plan.rows_file), **asdict(summary)}
    contents = {
        "html": write_comparison(summary),
        "json": json.dumps(document, indent=1),
        "markdown": write_markdown(summary),
    }
    plan.output.mkdir(parents=True, exist_ok=True)
    files = tuple(plan.output / NAMES[kind] for kind in contents)
    for file, text in zip(files, contents.values(), strict=True):
        write_whole(file, text.encode())
    return summary, files
