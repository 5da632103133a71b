"""`dggraph atlas`: the paths of a whole set of images, in one HTML file and one JSON file."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.networks import open_predictor
from dggraph.cli.options import (
    SCORE,
    as_json,
    device_option,
    make_folder,
    model_options,
    score_option,
)
from dggraph.cli.parameters import LocatedPath, WholeNumber
from dggraph.cli.progress import counting
from dggraph.cli.sections import SectionedCommand
from dggraph.errors import InputError

if TYPE_CHECKING:
    import torch


@click.command(cls=SectionedCommand)
@model_options
@click.argument("images", type=LocatedPath())
@click.option(
    "-o",
    "--output",
    required=True,
    type=LocatedPath(),
    help="HTML file; the numbers go beside it as .json.",
)
@click.option(
    "--limit",
    type=WholeNumber(min=1),
    metavar="N",
    help="At most N images, evenly spread over the set.",
)
@click.option(
    "--instances",
    default=40,
    show_default=True,
    type=WholeNumber(1, 400),
    help="Images shown with their paths.",
)
@click.option(
    "--on-bad-image",
    default="error",
    show_default=True,
    type=click.Choice(["error", "skip"]),
    help="Stop at an image that cannot be read, or count and name it.",
)
@score_option
@device_option
@as_json
def command(
    images: Path,
    output: Path,
    limit: int | None,
    instances: int,
    on_bad_image: Any,
    score: float | None,
    device: "torch.device",
    as_json: bool,
    **model: Any,
) -> None:
    """Run MODEL on a set of IMAGES and report on their paths.

    MODEL may also be the run folder of a detector: images are shown with what it finds. IMAGES is a
    folder of images, a folder with a sub-folder for each class, or MNIST's files. An interrupted
    run continues where it was. On several processes, with the same result: torchrun
    --nproc-per-node N -m dggraph atlas MODEL IMAGES -o REPORT.html
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{output} is to be an HTML file; give it the suffix .html.")
    state, numbers = output.with_suffix(".state"), output.with_suffix(".json")
    refuse_foreign(output, numbers)

    from dggraph.data.image_sets import open_image_set
    from dggraph.evaluation.atlas import collect_atlas
    from dggraph.system import processes
    from dggraph.system.files import write_whole
    from dggraph.views.escaping import visible
    from dggraph.views.report import make_report

    with processes.process_group():
        predictor = open_predictor(score=score, device=device, **model)
        found = open_image_set(images, predictor.net.labels)
        is_first = processes.rank() == 0
        with (
            counting("Running images") if is_first else nullcontext(lambda done, total: None)
        ) as progress:
            collected = collect_atlas(
                predictor,
                found,
                limit=limit,
                num_instances=instances,
                on_bad_image=on_bad_image,
                state=state,
                progress=progress,
            )
    if not is_first:
        return
    atlas = collected.atlas
    report = make_report(
        predictor.net.graph, atlas, collected.thumbnails, score=SCORE if score is None else score
    )
    write_whole(numbers, report.json.encode())
    write_whole(output, report.html.encode())
    state.unlink(missing_ok=True)
    if as_json:
        facts: dict[str, Any] = {
            "report": str(output),
            "numbers": str(numbers),
            "num_images": atlas.num_images,
        }
        facts |= {
            "num_skipped": atlas.num_skipped,
            "ignored": dict(found.ignored),
            "notes": list(found.notes),
        }
        facts |= {"kept": atlas.mean_macs / atlas.static_macs, "num_paths": atlas.num_paths}
        facts |= {
            "path_entropy_bits": atlas.path_entropy_bits,
            "accuracy": atlas.accuracy,
            "warnings": atlas.gates.warnings,
            "weights_origin": atlas.weights_origin,
        }
        click.echo(json.dumps(facts))
        return
    click.echo(visible(f"{report.summary}."))
    if atlas.num_skipped:
        click.echo(
            visible(
                f"{atlas.num_skipped} could not be read, for example {atlas.skipped[0][0]}; the"
                " report names them."
            )
        )
    for note in found.notes:
        click.echo(visible(f"note: {note}."))
    for warning in atlas.gates.warnings:
        click.echo(visible(f"! {warning}"))
    click.echo(visible(f"Report: {output}, numbers: {numbers}."))


def refuse_foreign(output: Path, numbers: Path) -> None:
    """Find out before the work what could not be written after it.

    Raises:
        InputError: a folder is in the way, the folder may not be written to, or the JSON file is
            not of an atlas.
    """
    make_folder(output.parent)
    if output.is_dir() or numbers.is_dir():
        raise InputError(
            f"{output if output.is_dir() else numbers} is a folder; choose another output."
        )
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{output.parent} may not be written to; choose another output.")
    if numbers.is_file():
        with numbers.open("rb") as stream:
            if b'"dggraph atlas"' not in stream.read(100):
                raise InputError(
                    f"{numbers} is there and no atlas of ours, so it is not overwritten. Choose"
                    " another output."
                )
