"""`dggraph bench`: how long a converted network takes beside its static backbone."""

import json
from dataclasses import asdict
from typing import Any

import click

from dggraph.cli.options import as_json, working
from dggraph.cli.parameters import WholeNumber
from dggraph.errors import InputError


@click.command()
@click.argument("model")
@click.option("--input-size", type=WholeNumber(min=1), help="Side of the square input in pixels.")
@click.option("--router", default="stage", show_default=True, help="Name of the router.")
@click.option(
    "--batch", "batches", multiple=True, default=(1, 16), show_default=True, type=WholeNumber(min=1)
)
@click.option(
    "--kept",
    multiple=True,
    default=(0.5, 0.75, 1.0),
    show_default=True,
    type=click.FloatRange(0, 1),
)
@click.option(
    "--rounds", default=15, show_default=True, type=WholeNumber(min=3), help="Interleaved rounds."
)
@click.option("--threads", type=WholeNumber(min=1), help="Threads; torch's default otherwise.")
@as_json
def command(
    model: str,
    input_size: int | None,
    router: str,
    batches: tuple[int, ...],
    kept: tuple[float, ...],
    rounds: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time MODEL's executors against the static backbone, on random paths that keep a fraction of
    its MACs.
    """
    import torch

    from dggraph.evaluation.timing import time_inference
    from dggraph.models.registry import load_model
    from dggraph.network.conversion import convert

    if threads is not None:
        torch.set_num_threads(threads)
    built = load_model(model, input_size=input_size)
    if built.preprocess is None:
        raise InputError(f"{model} does not say its input size; give --input-size.")
    shape = built.preprocess.input_size
    net = convert(built, router=router)
    rows: list[dict[str, Any]] = []
    for batch in batches:
        x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
        for fraction in kept:
            with working(f"{model}, batch {batch}, kept {fraction:g}"):
                realised, timings = time_inference(net, built.model, x, fraction, rounds=rounds)
            facts = {"batch": batch, "kept": realised, "milliseconds": timings[0].seconds * 1e3}
            rows.append(facts | {timing.name: asdict(timing) for timing in timings})
    if as_json:
        click.echo(
            json.dumps(
                {"model": model, "router": router, "threads": torch.get_num_threads(), "rows": rows}
            )
        )
    else:
        show(f"{model}, {router} router, {shape[-1]} px, {torch.get_num_threads()} threads", rows)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows: time over the static backbone's, losses as plainly as gains."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for heading in ("batch", "MACs kept", "static ms", "dense", "sparse", "auto"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratios = [_ratio(row[name]) for name in ("dense", "sparse", "auto")]
        table.add_row(
            str(row["batch"]), f"{row['kept']:.2f}", f"{row['milliseconds']:.1f}", *ratios
        )
    console = Console()
    console.print(table)
    console.print(
        "Time over the static backbone's, median of paired rounds; dense runs every block and"
        " masks."
    )
    if not all(
        row[name]["is_reliable"] for row in rows for name in ("baseline", "dense", "sparse", "auto")
    ):
        console.print(
            "? = unreliable: quartiles more than 10 % apart; something else is running, or use more"
            " --rounds."
        )


def _ratio(timing: dict[str, Any]) -> str:
    return f"{timing['ratio']:.2f}{'' if timing['is_reliable'] else '?'}"
