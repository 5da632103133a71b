"""`dggraph bench`: how long a converted network takes beside its static backbone."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.networks import open_network, rebuild_backbone
from dggraph.cli.options import as_json, device_option, model_options, working
from dggraph.cli.parameters import Number, WholeNumber
from dggraph.cli.sections import SectionedCommand
from dggraph.system.allocator import keep_freed_memory

if TYPE_CHECKING:
    import torch

EXECUTORS = ("dense", "sparse")


@click.command(cls=SectionedCommand)
@model_options
@click.option(
    "--batch-size",
    "--batch",
    "batches",
    multiple=True,
    default=(1, 16),
    show_default=True,
    type=WholeNumber(min=1),
    help="Images at a time; repeat it for several sizes.",
)
@click.option(
    "--kept",
    multiple=True,
    default=(0.5, 0.75, 1.0),
    show_default=True,
    type=Number(0, 1),
    help="Share of the MACs that the paths keep; repeat it for several.",
)
@click.option(
    "--rounds", default=15, show_default=True, type=WholeNumber(min=3), help="Interleaved rounds."
)
@click.option("--threads", type=WholeNumber(min=1), help="Threads; torch's default otherwise.")
@device_option
@as_json
def command(
    model: str,
    batches: tuple[int, ...],
    kept: tuple[float, ...],
    rounds: int,
    threads: int | None,
    device: "torch.device",
    as_json: bool,
    **options: Any,
) -> None:
    """Time MODEL's executors against the static backbone, on random paths.

    The paths keep a given fraction of the MACs. They are random because time depends on how much is
    skipped, not on what the routers have learned.
    """
    import torch

    from dggraph.evaluation.timing import time_inference

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    net = open_network(model, **options).to(device)
    backbone = rebuild_backbone(net, options["backbone"]).to(device)
    shape = net.blueprint.input_shape
    rows: list[dict[str, Any]] = []
    for batch in batches:
        x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0)).to(device)
        for fraction in kept:
            with working(f"{model}, batch {batch}, kept {fraction:g}"):
                realised, timings = time_inference(net, backbone, x, fraction, rounds=rounds)
            facts = {"batch": batch, "kept": realised, "milliseconds": timings[0].seconds * 1e3}
            rows.append(facts | {timing.name: asdict(timing) for timing in timings})
    setting = {
        "model": model,
        "router": net.blueprint.router,
        "weights_origin": net.weights_origin,
        "input_shape": list(shape),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if as_json:
        click.echo(json.dumps(setting | {"rows": rows}))
    else:
        show(setting, rows)


def show(setting: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print the rows: time over the static backbone's, losses as plainly as gains."""
    from rich.console import Console
    from rich.table import Table

    from dggraph.views.escaping import for_terminal, plural

    title = (
        f"{setting['model']}, {setting['router']} router, {setting['input_shape'][-1]} px,"
        f" {setting['device']}, {plural(setting['threads'], 'thread')}, weights:"
        f" {setting['weights_origin']}"
    )
    console, table = Console(), Table()
    console.print(for_terminal(title), soft_wrap=True)
    for heading in ("batch", "MACs ratio", "static ms", *EXECUTORS):
        table.add_column(heading, justify="right")
    for row in rows:
        ratios = [_ratio(row[name]) for name in EXECUTORS]
        table.add_row(
            str(row["batch"]), f"{row['kept']:.2f}", f"{row['milliseconds']:.1f}", *ratios
        )
    console.print(table)
    console.print(
        "dense and sparse: time over the static backbone's, below 1 is faster; median of paired"
        " rounds. dense runs every block and masks; sparse skips, and is what executor = 'auto'"
        " runs in eval mode without gradients. Paths are random.",
        soft_wrap=True,
    )
    if not all(row[name]["is_reliable"] for row in rows for name in ("baseline", *EXECUTORS)):
        console.print(
            "? = unreliable: quartiles more than 10 % apart; something else is running, or use more"
            " --rounds.",
            soft_wrap=True,
        )


def _ratio(timing: dict[str, Any]) -> str:
    return f"{timing['ratio']:.2f}{'' if timing['is_reliable'] else '?'}"
