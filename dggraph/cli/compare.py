"""`dggraph compare`: many methods by one recipe, and one report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.options import FAILED, INTERRUPTED, accelerator_option, as_json
from dggraph.cli.parameters import LocatedPath, Number, WholeNumber

if TYPE_CHECKING:
    import torch

    from dggraph.comparing.plan import Plan, PlannedRun
    from dggraph.comparing.queue import QueueEnd
    from dggraph.comparing.rows import Row, State


@click.command()
@click.argument("config", type=LocatedPath(dir_okay=False))
@click.option("--list", "is_list", is_flag=True, help="Show every run and its state; run nothing.")
@click.option(
    "--report",
    "is_report",
    is_flag=True,
    help="Write the report from the rows that are there; run nothing.",
)
@click.option(
    "--jobs", type=WholeNumber(min=1), default=1, show_default=True, help="Processes at a time."
)
@click.option(
    "--threads",
    type=WholeNumber(min=1),
    default=1,
    show_default=True,
    help="Threads of each process.",
)
@click.option(
    "--hours",
    type=Number(min=0, min_open=True),
    help="Stop after this time; the same command goes on.",
)
@click.option("--retry", is_flag=True, help="Start failed runs again.")
@accelerator_option
@as_json
def command(
    config: Path,
    is_list: bool,
    is_report: bool,
    jobs: int,
    threads: int,
    hours: float | None,
    retry: bool,
    device: "torch.device | None",
    as_json: bool,
) -> int:
    """Train every method of CONFIG (TOML) on every seed, by one recipe.

    A row per run is appended to OUTPUT/rows.jsonl. The same command continues a queue that was
    stopped or killed. --report says which method is best, and whether it is sure.
    """
    from dggraph.comparing.plan import read_plan, remarks_on
    from dggraph.comparing.queue import run_queue
    from dggraph.comparing.rows import state_of
    from dggraph.views.escaping import visible

    plan = read_plan(config)
    state = state_of(plan)
    if is_report:
        _write_report(plan, f"dggraph compare {config}", as_json)
        return 0
    notes: list[str] = []

    def note(sentence: str) -> None:
        notes.append(sentence)
        if not as_json:
            click.echo(f"note: {visible(sentence)}")

    for sentence in remarks_on(plan):
        note(sentence)
    if is_list:
        _show_list(plan, state, notes, as_json)
        return 0

    def show(run: "PlannedRun", row: "Row", num_left: int) -> None:
        if not as_json:
            click.echo(f"{_name(run)}: {_result(row)}; {num_left} left")

    end = run_queue(
        plan,
        jobs=jobs,
        threads=threads,
        device=None if device is None else str(device),
        hours=hours,
        retries=frozenset(state.failed) if retry else frozenset(),
        show=show,
        note=note,
    )
    _show_end(plan, end, notes, as_json)
    if end.signal is not None:
        return INTERRUPTED
    return FAILED if end.num_failed else 0


def _name(run: "PlannedRun") -> str:
    from dggraph.views.escaping import visible

    parts = [run.method, run.family, run.data, f"seed {run.seed}"]
    parts += [] if run.budget is None else [f"budget {run.budget:g}"]
    return visible(", ".join(part for part in parts if part))


def _result(row: "Row") -> str:
    from dggraph.views.escaping import visible

    if "error" in row:
        return visible(f"failed: {row['error']['message']}")
    return f"{row['accuracy']:.2%}"


def _show_list(plan: "Plan", state: "State", notes: list[str], as_json: bool) -> None:
    told: list[dict[str, Any]] = []
    for run in plan.runs:
        row = state.done.get(run) or state.failed.get(run)
        names = dict(zip(("method", "family", "data", "seed", "budget"), run.names, strict=True))
        how = "done" if run in state.done else "failed" if run in state.failed else "waiting"
        if how == "waiting" and run.folder.is_dir():
            how = "begun"
        told.append(names | {"state": how, "digest": run.digest})
        if not as_json:
            click.echo(f"{how:8}{_name(run)}" + (f": {_result(row)}" if row else ""))
    foreign = len(state.foreign)
    if as_json:
        document = {"output": str(plan.output), "runs": told, "foreign": foreign, "notes": notes}
        click.echo(json.dumps(document))
        return
    click.echo(
        f"{len(state.done)} of {len(plan.runs)} runs done, {len(state.failed)} failed; rows in"
        f" {plan.rows_file}" + (f"; {foreign} rows of other keys or methods" if foreign else "")
    )


def _write_report(plan: "Plan", command: str, as_json: bool) -> None:
    from dggraph.comparing.report import write_report
    from dggraph.views.escaping import visible

    summary, files = write_report(plan, command)
    if as_json:
        names = [str(file) for file in files]
        click.echo(json.dumps({"verdict": list(summary.verdict), "files": names}))
        return
    for sentence in summary.verdict:
        click.echo(visible(sentence))
    click.echo(", ".join(str(file) for file in files))


def _show_end(plan: "Plan", end: "QueueEnd", notes: list[str], as_json: bool) -> None:
    if as_json:
        counts = {"done": end.num_done, "failed": end.num_failed, "waiting": end.num_waiting}
        click.echo(json.dumps({"rows": str(plan.rows_file), **counts, "notes": notes}))
        return
    failed = f", {end.num_failed} failed (--retry starts them again)" if end.num_failed else ""
    left = f", {end.num_waiting} left: the same command goes on" if end.num_waiting else ""
    click.echo(f"{end.num_done} of {len(plan.runs)} runs done{failed}{left}; {plan.rows_file}")
