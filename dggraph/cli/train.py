"""`dggraph train`: train from a configuration, or go on where the run was left."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.flags import config_flags
from dggraph.cli.options import INTERRUPTED, as_json
from dggraph.cli.parameters import LocatedPath
from dggraph.training.config import read_config

if TYPE_CHECKING:
    from dggraph.training.loop import Log


@click.command()
@click.argument("config", required=False, type=LocatedPath(dir_okay=False))
@config_flags
@as_json
def command(config: Path | None, as_json: bool, **overrides: Any) -> int:
    """Train as CONFIG (TOML) and the flags say; flags go first.

    The same call goes on with a run that was stopped or killed. On several processes: torchrun
    --nproc-per-node N -m dggraph train CONFIG.
    """
    keys = read_config(config, overrides)

    from dggraph.system import processes
    from dggraph.training.loop import train

    with processes.process_group():
        is_first = processes.rank() == 0
        notes: list[str] = []
        with _logging(is_silent=as_json or not is_first) as show:

            def log(row: Mapping[str, Any]) -> None:
                notes.extend([str(row["note"])] if "note" in row else ())
                show(row)

            result = train(keys, log)
        if is_first:
            row: dict[str, Any] = {
                "folder": str(result.folder),
                "step": result.step,
                "is_finished": result.is_finished,
            }
            row |= {"notes": notes} if notes else {}
            row |= {} if result.evaluation is None else result.evaluation.row()
            click.echo(
                json.dumps(row)
                if as_json
                else (
                    f"{'finished' if result.is_finished else 'stopped; the same call goes on'}:"
                    f" {result.folder}"
                )
            )
    return 0 if result.is_finished else INTERRUPTED


@contextmanager
def _logging(*, is_silent: bool) -> Iterator["Log"]:
    """What shows rows: one line that changes on a terminal, plain lines elsewhere."""
    if is_silent:
        yield lambda row: None
    elif not sys.stderr.isatty():
        yield lambda row: click.echo(_line(row), err=True)
    else:
        from rich.console import Console
        from rich.markup import escape

        console = Console(stderr=True)
        with console.status("starting") as status:

            def show(row: Mapping[str, Any]) -> None:
                status.update(escape(_line(row)))
                if "epoch" in row or "step" not in row:
                    console.print(escape(_line(row)))

            yield show


def _line(row: Mapping[str, Any]) -> str:
    if "note" in row:
        from dggraph.views.escaping import visible

        return visible(f"note: {row['note']}.")
    shown = {key: value for key, value in row.items() if isinstance(value, int | float)}
    return "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )
