"""What commands show while they run: a summary at the start, progress, and the time left.

A terminal gets a bar. Elsewhere training prints plain lines, and other commands nothing.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dggraph.training.config import TrainConfig
    from dggraph.training.loop import Log, RunStart

Begin = Callable[["RunStart", "TrainConfig"], None]


@contextmanager
def showing(*, is_silent: bool) -> Iterator[tuple[Begin, "Log"]]:
    """What shows the beginning of a run, and what shows each of its rows."""
    if is_silent:
        yield (lambda start, config: None), (lambda row: None)
    elif sys.stderr.isatty():
        with _showing_a_bar() as shown:
            yield shown
    else:
        yield _show_lines()


def _show_lines() -> tuple[Begin, "Log"]:
    clock = _Clock()

    def begin(start: "RunStart", config: "TrainConfig") -> None:
        clock.begin(start)
        for line in summarise(start, config):
            click.echo(line, err=True)

    return begin, lambda row: click.echo(_line(row, clock), err=True)


@contextmanager
def _showing_a_bar() -> Iterator[tuple[Begin, "Log"]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=None)

        def begin(start: "RunStart", config: "TrainConfig") -> None:
            for line in summarise(start, config):
                bar.console.print(escape(line), highlight=False, soft_wrap=True)
            bar.update(task, total=start.num_steps, completed=start.step, description="")

        def show(row: Mapping[str, Any]) -> None:
            if "step" in row:
                facts = {name: value for name, value in row.items() if name != "step"}
                bar.update(task, completed=row["step"], description=_line(facts))
            if "epoch" in row or "step" not in row:
                bar.console.print(escape(_line(row)), highlight=False, soft_wrap=True)

        yield begin, show


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Clock:
    """How far a run is, and how long the rest takes at the pace since it began here."""

    def __init__(self) -> None:
        self.num_steps, self.first, self.started = 0, 0, 0.0

    def begin(self, start: "RunStart") -> None:
        self.num_steps, self.first, self.started = start.num_steps, start.step, time.monotonic()

    def left(self, step: int) -> str:
        if step <= self.first or not self.num_steps:
            return ""
        pace = (time.monotonic() - self.started) / (step - self.first)
        return f"  {duration(pace * (self.num_steps - step))} left"


def summarise(start: "RunStart", config: "TrainConfig") -> list[str]:
    """What is about to happen, in a few lines."""
    from dggraph.views.escaping import plural, visible

    images = " and ".join(
        f"{number:,} {part}"
        for number, part in zip(start.num_images, ("training", "validation"), strict=True)
    )
    routers = f", {start.router_fraction:.2%} of them routers" if start.router_fraction else ""
    budget = (
        "no budget"
        if start.budget is None
        else f"budget {start.budget:g} of the static network's MACs"
    )
    where = start.device
    where += f", {start.num_processes} processes" if start.num_processes > 1 else ""
    done = f", {start.step} done" if start.step else ""
    return [
        visible(
            f"{config.model} on {config.dataset}: {start.num_classes}"
            f" {'class' if start.num_classes == 1 else 'classes'}, {images} images"
        ),
        visible(
            f"{start.num_parameters:,} parameters{routers}; weights to begin with:"
            f" {start.weights_origin}"
        ),
        f"{start.num_steps} steps in {plural(config.epochs, 'epoch')}{done}; {budget}; on {where}",
        visible(f"run folder {start.folder}"),
    ]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 4:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _line(row: Mapping[str, Any], clock: _Clock | None = None) -> str:
    if "note" in row:
        from dggraph.views.escaping import visible

        return visible(f"note: {row['note']}.")
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in row.items()
        if isinstance(value, int | float)
    }
    if clock is None or "step" not in shown:
        return "  ".join(f"{name} {value}" for name, value in shown.items())
    step = shown.pop("step")
    total = f"/{clock.num_steps}" if clock.num_steps else ""
    facts = "".join(f"  {name} {value}" for name, value in shown.items())
    return f"step {step}{total}{facts}{clock.left(int(row['step']))}"
