"""`dggraph paths`: the path that each image takes, drawn."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dggraph.cli.layouts import (
    collapse_option,
    lay_out_network,
    page_options,
    refuse_scheme,
    say_collapsed,
)
from dggraph.cli.networks import open_predictor, warn_of_random
from dggraph.cli.options import (
    SCORE,
    as_json,
    device_option,
    model_options,
    score_option,
    working,
)
from dggraph.cli.parameters import LocatedPath, WholeNumber
from dggraph.cli.picture_files import SUFFIXES, list_files, place_pictures
from dggraph.cli.sections import SectionedCommand
from dggraph.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dggraph.evaluation.recording import Predictor
    from dggraph.graph.detection import Detected
    from dggraph.graph.ir import ActivatedPath
    from dggraph.network.network import DynamicNetwork
    from dggraph.views.colour_scheme import Scheme
    from dggraph.views.layout import Layout
    from dggraph.views.picture import Picture

    Writer = Callable[[Picture, Path], None]


PROGRAM = "network.pt2"
"""What Model Explorer opens, beside the node data."""


class RecordedImage(NamedTuple):
    """One image run through a network, or a detector on one."""

    row: dict[str, Any]
    """Facts for the table and for --json."""
    path: "ActivatedPath"
    image: "Image.Image"
    detected: "Detected | None"
    """What a detector found."""


@click.command(cls=SectionedCommand)
@model_options
@click.argument("images", nargs=-1, type=LocatedPath())
@click.option(
    "-o",
    "--output",
    required=True,
    type=LocatedPath(),
    metavar="FOLDER|FILE",
    help="Folder for the pictures; of one image also a file, such as path.svg.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(SUFFIXES)),
    help="Of the pictures in a folder; a file's suffix says it.  [default: svg]",
)
@click.option(
    "--diff",
    nargs=2,
    type=LocatedPath(),
    metavar="A B",
    help="One picture: what only one of two images uses.",
)
@collapse_option
@page_options
@score_option
@click.option(
    "--random-routers",
    type=WholeNumber(),
    metavar="SEED",
    help="Try out routing: give the routers seeded random weights.",
)
@device_option
@as_json
def command(
    images: tuple[Path, ...],
    output: Path,
    kind: str | None,
    diff: tuple[Path, Path] | None,
    collapse: str | None,
    scheme: Any,
    width: int,
    score: float | None,
    random_routers: int | None,
    device: "torch.device",
    as_json: bool,
    **model: Any,
) -> None:
    """Run MODEL on IMAGES, files or folders, and draw one picture per image.

    A folder stands for every image in it, at any depth. MODEL may also be the
    run folder of a detector: pictures show what it finds.
    """
    if not images and diff is None:
        raise click.UsageError("Missing IMAGES to draw, or --diff A B.")
    images, notes = list_files(images)
    targets, diff_target = place_pictures(images, diff, output, kind)
    for target in (*targets, diff_target):
        refuse_scheme(target, scheme)
    predictor = open_predictor(score=score, device=device, **model)
    net, score = predictor.net, SCORE if score is None else score
    if random_routers is not None:
        randomise_routers(net, random_routers)
    layout = lay_out_network(net, collapse, width)
    program = (output.parent if diff_target == output else output) / PROGRAM
    draw = choose_writer(predictor, kind, scheme, program)
    document: dict[str, Any] = {"collapse": layout.level} | (
        {"score": score} if predictor.is_detector else {}
    )
    document["weights_origin"] = net.weights_origin
    document |= {"notes": notes} if notes else {}
    document["images"] = draw_paths(predictor, images, targets, draw, layout=layout, score=score)
    if diff is not None:
        document["difference"] = draw_difference(
            predictor, diff, diff_target, draw, layout=layout, score=score
        )
    if as_json:
        click.echo(json.dumps(document))
        return
    from dggraph.views.escaping import visible

    for note in notes:
        click.echo(visible(f"note: {note}."))
    if images:
        show_rows(document["images"], score if predictor.is_detector else None)
        is_file = targets == [output]
        click.echo(
            visible(f"Picture: {output}.")
            if is_file
            else visible(f"Pictures are in {output}, numbered in this order.")
        )
        warn_of_random(net.weights_origin, str(model["model"]))
    if kind == "model-explorer":
        click.echo(visible(f"Open {program} in Model Explorer, and add these files as node data."))
    if diff is not None:
        show_difference(document["difference"])
    if message := say_collapsed(net, layout, collapse):
        click.echo(message)


def choose_writer(
    predictor: "Predictor", kind: str | None, scheme: "Scheme", program: Path
) -> "Writer":
    """Return what writes a picture into a file.

    For Model Explorer, the network that its data are for is written to `program` first.

    Raises:
        InputError: the network is a detector's, and node data are for classifiers.
        ExportError: the network cannot be exported, so its operations have no names.
    """
    from dggraph.system.files import write_whole
    from dggraph.views.drawing import draw
    from dggraph.views.node_data import write_node_data

    if kind != "model-explorer":
        return lambda picture, file: draw(replace(picture, scheme=scheme), file)
    if predictor.is_detector:
        raise InputError(
            "--format model-explorer colours an exported network, and a detector cannot be"
            " exported. Use --format json."
        )
    from dggraph.exporting.node_ids import name_operations

    with working("Exporting"):
        named = name_operations(predictor.net)
    write_whole(program, named.content)
    return lambda picture, file: write_whole(
        file, write_node_data(picture, named.operations).encode()
    )


def draw_paths(
    watched: "DynamicNetwork | Predictor",
    images: Sequence[Path],
    targets: Sequence[Path],
    draw: "Writer",
    *,
    layout: "Layout",
    score: float = SCORE,
) -> list[dict[str, Any]]:
    """Draw every image's path into its file of `targets`, and return a row of facts per image.

    A detector's pictures show the objects with at least `score`.
    """
    from dggraph.evaluation.recording import as_predictor
    from dggraph.models.origins import MARK, RANDOM
    from dggraph.views.picture import picture_path

    predictor, rows = as_predictor(watched), list[dict[str, Any]]()
    marks = [MARK] if predictor.net.weights_origin == RANDOM else []
    for file, target in zip(images, targets, strict=True):
        with working(f"Drawing {file.name}"):
            row, path, image, detected = run_image(predictor, file)
            note = (
                " · the backbone's own path: these routers are untrained, or agree on it"
                if row["is_static_path"]
                else ""
            )
            macs = f"{tell_prediction(row)} · {row['kept']:.3f} of the static network's MACs"
            if detected is not None:
                macs = f"{row['kept']:.3f} of the static backbone's MACs, at the traced size"
                detected = detected.scoring(score)
            picture = picture_path(
                predictor.net.graph,
                path,
                title=file.name,
                facts=[macs + note, *marks],
                layout=layout,
                thumbnail=image,
                detected=detected,
            )
            draw(picture, target)
            rows.append(row | {"picture": str(target)})
    return rows


def draw_difference(
    predictor: "Predictor",
    files: tuple[Path, Path],
    target: Path,
    draw: "Writer",
    *,
    layout: "Layout",
    score: float,
) -> dict[str, Any]:
    """Draw what only one of two images uses; its facts, with the nodes and edges of each side."""
    from dggraph.views.picture import picture_difference

    first, second = runs = [run_image(predictor, file) for file in files]
    names = (
        (files[0].name, files[1].name)
        if files[0].name != files[1].name
        else (str(files[0]), str(files[1]))
    )
    picture = picture_difference(
        predictor.net.graph,
        first.path,
        second.path,
        names=names,
        layout=layout,
        thumbnails=[run.image for run in runs],
        detected=[None if run.detected is None else run.detected.scoring(score) for run in runs],
    )
    draw(picture, target)
    facts: dict[str, Any] = {"images": [first.row, second.row], "picture": str(target)}
    for mark, key in (("first", "only_first"), ("second", "only_second"), ("both", "both")):
        facts[key] = {
            "nodes": [node for node, its in picture.marks.nodes.items() if its == mark],
            "edges": [list(ends) for ends, its in picture.marks.edges.items() if its == mark],
        }
    return facts


def run_image(predictor: "Predictor", file: Path) -> RecordedImage:
    """Record the path of one image file.

    Raises:
        InputError: no image.
    """
    from dggraph.models.preprocessing import open_image
    from dggraph.views.atlas_json import list_detected

    image, net = open_image(file), predictor.net
    prediction = predictor.predict(image)
    path = prediction.path
    is_static = all(
        (weight != 0) == edge.is_static
        for stage, weights in path.weights.items()
        for edge, weight in zip(net.graph.edges(stage), weights, strict=True)
    )
    row: dict[str, Any] = {
        "image": str(file),
        "macs": path.macs,
        "kept": path.macs / net.report.total_macs,
    }
    row |= {
        "active_edges": len(path.active_edges(net.graph)),
        "is_static_path": is_static,
        "margin": path.margin,
        "spread": path.spread,
    }
    row |= asdict(prediction.classes[0]) if prediction.classes else {}
    return RecordedImage(row | list_detected(prediction.detected), path, image, prediction.detected)


def tell_prediction(row: dict[str, Any]) -> str:
    """Label and probability, where the network is a classifier."""
    return f"{row['label']} {row['probability']:.2f}" if "label" in row else "no class scores"


def tell_found(row: dict[str, Any], score: float) -> str:
    """How many objects of `score` or more a detector found, by class."""
    names = Counter(one["class"] for one in row["objects"] if one["score"] >= score)
    return (
        ", ".join(f"{name} ({number})" if number > 1 else name for name, number in names.items())
        or "none"
    )


def show_rows(rows: list[dict[str, Any]], score: float | None = None) -> None:
    """Print the rows as a table, and a note where every image took the static path.

    A detector's rows count the objects with at least `score`.
    """
    from rich.console import Console
    from rich.table import Table

    from dggraph.views.escaping import for_terminal

    table = Table()
    for heading in (
        "image",
        "prediction" if score is None else "objects",
        "MACs ratio",
        "active edges",
    ):
        table.add_column(
            heading,
            justify="right" if heading in ("MACs ratio", "active edges") else "left",
            overflow="fold",
        )
    names = [Path(row["image"]).name for row in rows]
    if len(set(names)) < len(names):
        names = [row["image"] for row in rows]
    for name, row in zip(names, rows, strict=True):
        told = tell_prediction(row) if score is None else tell_found(row, score)
        cells = (name, told, f"{row['kept']:.3f}", str(row["active_edges"]))
        table.add_row(*(for_terminal(cell) for cell in cells))
    console = Console()
    console.print(table)
    if score is not None:
        console.print(
            f"Objects with a score of at least {score:g}. MACs ratio: MACs of the path over those"
            " of the static backbone, at the traced size."
        )
    else:
        console.print(
            "MACs ratio: MACs of the path over those of the static network; routers and sums count."
        )
    if all(row["is_static_path"] for row in rows):
        console.print(
            "Every image took the backbone's own path: untrained routers send every image along the"
            " static edges."
        )


def show_difference(facts: dict[str, Any]) -> None:
    """Print how two paths differ."""
    from dggraph.views.escaping import plural, visible

    names = [visible(Path(row["image"]).name) for row in facts["images"]]
    for key, who in (
        ("only_first", f"only {names[0]}"),
        ("only_second", f"only {names[1]}"),
        ("both", "both"),
    ):
        click.echo(
            f"{who}: {plural(len(facts[key]['edges']), 'edge')},"
            f" {plural(len(facts[key]['nodes']), 'node')}"
        )
    click.echo(visible(f"picture: {facts['picture']}"))


def randomise_routers(net: "DynamicNetwork", seed: int) -> None:
    """Seeded random weights for every router, so that images part ways."""
    import torch

    from dggraph.compiler.lowered import routing_of

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for stage in net.graph.stages:
            for parameter in routing_of(net.lowered, stage).parameters():
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * 2)
