"""`dggraph export`: a network as a file for other runtimes, compared and timed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.bench_images import read_inputs
from dggraph.cli.networks import open_classifier, warn_of_random
from dggraph.cli.options import as_json, make_folder, model_options, working
from dggraph.cli.parameters import LocatedPath, WholeNumber
from dggraph.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from torch import Tensor

    from dggraph.exporting.network_files import ExportReport

LIMIT = 16


@click.command(cls=SectionedCommand)
@model_options
@click.option(
    "-o", "--output", required=True, type=LocatedPath(dir_okay=False), help="File to write."
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["onnx", "pt2"]),
    help="ONNX, or a program of torch.export; by default as the suffix of --output, or else ONNX.",
)
@click.option(
    "--mode",
    type=click.Choice(["dense", "skip"]),
    default="dense",
    show_default=True,
    help="Any batch with every block run, or one image with skipped blocks not computed.",
)
@click.option(
    "--images",
    type=LocatedPath(),
    metavar="FOLDER",
    help="Compare and time on these images; by default on noise.",
)
@click.option(
    "--rounds",
    type=WholeNumber(min=0),
    default=15,
    show_default=True,
    help="Rounds of timing in onnxruntime, at least 3; 0 to leave it out.",
)
@as_json
def command(
    model: str,
    output: Path,
    file_format: Any,
    mode: Any,
    images: Path | None,
    rounds: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Write MODEL as a file for other runtimes, run it again and compare.

    Nothing is written unless the file gives the network's answers. For ONNX, its time for one image
    on one thread is measured beside the static network's.
    """
    if 0 < rounds < 3:
        raise click.UsageError("--rounds needs at least 3, or 0 to leave timing out.")
    make_folder(output.parent)
    net = open_classifier(model, **options)
    from dggraph.exporting.comparison import comparison_images
    from dggraph.exporting.network_files import export

    shown = comparison_images(net, None if images is None else _read(net, images))
    with working(f"Exporting {model}"):
        report = export(net, output, format=file_format, mode=mode, images=shown)
    rows = _time(net, report, shown, rounds) if rounds else []
    if as_json:
        document = asdict(report) | {"weights_origin": net.weights_origin, "latency": rows}
        click.echo(json.dumps(document))
        return
    from dggraph.views.escaping import visible

    for line in str(report).splitlines():
        click.echo(visible(line))
    _show_times(rows)
    warn_of_random(net.weights_origin, model)


def _read(net: Any, folder: Path) -> "Tensor":
    import torch

    from dggraph.data.image_sets import open_image_set

    images = open_image_set(folder, net.labels)
    inputs, _ = read_inputs(net, images, LIMIT, False)
    return torch.stack(inputs)


def _time(net: Any, report: "ExportReport", images: "Tensor", rounds: int) -> list[dict[str, Any]]:
    """A row for the static network, the dense form and the skipping one, of one image each."""
    from dggraph.exporting.latency import time_files
    from dggraph.network.network import DynamicNetwork

    if report.format != "onnx" or not isinstance(net, DynamicNetwork):
        return []
    with working("Timing"):
        timings = time_files(net, report, images, rounds=rounds)
    return [
        {
            "name": "static" if timing.name == "baseline" else timing.name,
            "milliseconds": 1e3 * timing.seconds / len(images),
            "ratio": timing.ratio,
            "low": timing.low,
            "high": timing.high,
            "is_reliable": timing.is_reliable,
        }
        for timing in timings
    ]


def _show_times(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    click.echo("time of one image in onnxruntime, one thread, CPU time; ratios are medians:")
    for row in rows:
        mark = "" if row["is_reliable"] else "  (unreliable: use more --rounds)"
        click.echo(
            f"  {row['name']:<7}{row['milliseconds']:9.2f} ms  {row['ratio']:5.2f} of static"
            f" ({row['low']:.2f}-{row['high']:.2f}){mark}"
        )
