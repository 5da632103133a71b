"""`dggraph train`: train from a configuration, or go on where the run was left."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.flags import config_flags
from dggraph.cli.options import INTERRUPTED, accelerator_option, as_json
from dggraph.cli.parameters import LocatedPath
from dggraph.cli.progress import showing
from dggraph.cli.sections import SectionedCommand
from dggraph.errors import InputError
from dggraph.system.allocator import keep_freed_memory
from dggraph.training.config import read_config

if TYPE_CHECKING:
    import torch

    from dggraph.training.loop import TrainResult


@click.command(cls=SectionedCommand)
@click.argument("config", required=False, type=LocatedPath(dir_okay=False))
@config_flags
@accelerator_option
@as_json
def command(
    config: Path | None, device: "torch.device | None", as_json: bool, **overrides: Any
) -> int:
    """Train as CONFIG (TOML) and the flags say; flags go first.

    The same call continues a run that was stopped or killed. On several processes: torchrun
    --nproc-per-node N -m dggraph train CONFIG.
    """
    keep_freed_memory()
    keys = read_config(config, overrides)
    if ":" not in keys.model and Path(keys.model).is_dir():
        raise InputError(
            f"{keys.model} is a folder, and training converts a model by its name. To continue a"
            " run, give the command that began it."
        )

    from dggraph.system import processes
    from dggraph.training.loop import train

    with processes.computing_on(device), processes.process_group():
        is_first = processes.rank() == 0
        notes: list[str] = []
        with showing(is_silent=as_json or not is_first) as (begin, show):

            def log(row: Mapping[str, Any]) -> None:
                notes.extend([str(row["note"])] if "note" in row else ())
                show(row)

            result = train(keys, log, begin=lambda start: begin(start, keys))
        if is_first:
            row: dict[str, Any] = {
                "folder": str(result.folder),
                "step": result.step,
                "is_finished": result.is_finished,
            }
            row |= {"notes": notes} if notes else {}
            row |= {"budget": asdict(result.budget)} if result.budget else {}
            row |= {} if result.evaluation is None else result.evaluation.row()
            click.echo(json.dumps(row) if as_json else _ended(result))
    return 0 if result.is_finished else INTERRUPTED


def _ended(result: "TrainResult") -> str:
    if not result.is_finished:
        return f"stopped; the same call goes on: {result.folder}"
    budget = ""
    if result.budget is not None:
        colour = None if result.budget.is_met else "yellow"
        budget = click.style(f"{result.budget.message}\n", fg=colour)
    return f"{budget}finished: {result.folder}. Use it as MODEL: dggraph eval {result.folder}"
