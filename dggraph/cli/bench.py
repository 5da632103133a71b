"""`dggraph bench`: how long a converted network takes beside its static backbone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.bench_images import UNRELIABLE, measure_on_images, show_on_images
from dggraph.cli.networks import open_network, rebuild_backbone
from dggraph.cli.options import as_json, device_option, model_options, working
from dggraph.cli.parameters import LocatedPath, Number, WholeNumber
from dggraph.cli.sections import SectionedCommand
from dggraph.system.allocator import keep_freed_memory

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from dggraph.network.network import DynamicNetwork

EXECUTORS = ("dense", "sparse")
KEPT = (0.5, 0.75, 1.0)
ROUNDS, ROUNDS_OF_IMAGES, LIMIT = 15, 7, 32


@click.command(cls=SectionedCommand)
@model_options
@click.option(
    "--images",
    type=LocatedPath(),
    metavar="FOLDER",
    help="Time the paths of these images: a folder of images, of classes, or MNIST's files.",
)
@click.option(
    "--limit",
    type=WholeNumber(min=1),
    metavar="N",
    help=f"With --images: at most N, evenly spread over the set.  [default: {LIMIT}]",
)
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "skip"]),
    help="With --images: stop at one that cannot be read (default), or leave it out.",
)
@click.option(
    "--kept",
    multiple=True,
    type=Number(0, 1),
    help=(
        "Without --images: share of the MACs that random paths keep; repeat it for several."
        f"  [default: {', '.join(map(str, KEPT))}]"
    ),
)
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
    "--rounds",
    type=WholeNumber(min=3),
    help=f"Interleaved rounds.  [default: {ROUNDS}; with --images {ROUNDS_OF_IMAGES}]",
)
@click.option("--threads", type=WholeNumber(min=1), help="Threads; torch's default otherwise.")
@click.option(
    "--clock",
    default="wall",
    show_default=True,
    type=click.Choice(["wall", "cpu"]),
    help="cpu counts the time of all threads, and not that of other programs.",
)
@device_option
@as_json
def command(
    model: str,
    images: Path | None,
    limit: int | None,
    on_bad_image: str | None,
    kept: tuple[float, ...],
    batches: tuple[int, ...],
    rounds: int | None,
    threads: int | None,
    clock: str,
    device: "torch.device",
    as_json: bool,
    **options: Any,
) -> None:
    """Time MODEL beside its static backbone.

    With --images, on the paths of your images: plain and prepared for inference on both sides, and
    whether it pays. Without, on random paths that keep a given share of the MACs, since time
    depends more on how much is skipped than on what the routers have learned.
    """
    if images is not None and kept:
        raise click.UsageError("--kept is for random paths; --images have paths of their own.")
    if images is None and (limit is not None or on_bad_image is not None):
        raise click.UsageError("--limit and --on-bad-image go with --images.")
    if clock == "cpu" and device.type != "cpu":
        raise click.UsageError(f"--clock cpu does not count what {device} does.")
    keep_freed_memory()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    net = open_network(model, **options).to(device)
    backbone = rebuild_backbone(net, model, options["backbone"])
    document: dict[str, Any] = {
        "model": model,
        "router": net.blueprint.router,
        "weights_origin": net.weights_origin,
        "input_shape": list(net.blueprint.input_shape),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "clock": clock,
    }
    if images is not None:
        document |= measure_on_images(
            net,
            backbone,
            images,
            limit=limit or LIMIT,
            is_skipping=on_bad_image == "skip",
            batch_sizes=batches,
            rounds=rounds or ROUNDS_OF_IMAGES,
            clock=clock,
        )
    else:
        document |= {
            "rows": time_random(
                net,
                backbone.to(device),
                batches,
                kept or KEPT,
                rounds=rounds or ROUNDS,
                clock=clock,
            )
        }
    if as_json:
        click.echo(json.dumps(document))
        return
    from rich.console import Console

    from dggraph.views.escaping import for_terminal, plural

    console = Console(highlight=False)
    title = (
        f"{model}, {net.blueprint.router} router, {net.blueprint.input_shape[-1]} px, {device},"
        f" {plural(document['threads'], 'thread')}, weights: {net.weights_origin}"
    )
    console.print(for_terminal(title), soft_wrap=True)
    if images is not None:
        show_on_images(console, document)
    else:
        show_random(console, document["rows"])


def time_random(
    net: "DynamicNetwork",
    backbone: "nn.Module",
    batches: Sequence[int],
    kept: Sequence[float],
    *,
    rounds: int,
    clock: str,
) -> list[dict[str, Any]]:
    """Time both executors on random paths: a row for each batch size and share of the MACs."""
    import torch

    from dggraph.evaluation.timing import CLOCKS, time_inference
    from dggraph.system.devices import first_weight

    rows: list[dict[str, Any]] = []
    for batch in batches:
        x = torch.randn(
            (batch, *net.blueprint.input_shape), generator=torch.Generator().manual_seed(0)
        )
        x = x.to(first_weight(net))
        for fraction in kept:
            with working(f"batch {batch}, kept {fraction:g}"):
                realised, timings = time_inference(
                    net, backbone, x, fraction, rounds=rounds, clock=CLOCKS[clock]
                )
            facts = {"batch": batch, "kept": realised, "milliseconds": timings[0].seconds * 1e3}
            rows.append(facts | {timing.name: asdict(timing) for timing in timings})
    return rows


def show_random(console: "Console", rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows: time over the static backbone's, losses as plainly as gains."""
    from rich.table import Table

    table = Table()
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
        " runs in eval mode without gradients. Paths are random; --images FOLDER times those of"
        " your own images.",
        soft_wrap=True,
    )
    if not all(row[name]["is_reliable"] for row in rows for name in ("baseline", *EXECUTORS)):
        console.print(UNRELIABLE, soft_wrap=True)


def _ratio(timing: Mapping[str, Any]) -> str:
    return f"{timing['ratio']:.2f}{'' if timing['is_reliable'] else '?'}"
