"""`dggraph paths`: the path that each image takes, drawn."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dggraph.cli.layouts import collapse_option, lay_out_network, say_collapsed
from dggraph.cli.options import as_json, make_folder, model_options, open_network, working
from dggraph.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from dggraph.graph.ir import ActivatedPath
    from dggraph.runtime.network import DynamicNetwork
    from dggraph.views.layout import Layout

SUFFIXES = {"svg": "svg", "png": "png", "pdf": "pdf", "dot": "dot", "mermaid": "mmd", "json": "json"}


class Run(NamedTuple):
    """One image run through a network."""

    row: dict[str, Any]
    """Facts for the table and for --json."""
    path: "ActivatedPath"
    image: "Image.Image"


@click.command()
@model_options
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the pictures.")
@click.option("--format", "kind", default="svg", show_default=True, type=click.Choice(list(SUFFIXES)))
@click.option(
    "--diff", nargs=2, type=click.Path(path_type=Path), metavar="A B", help="One picture: what only one of two images uses."
)
@collapse_option
@click.option("--random-routers", type=int, metavar="SEED", help="Try out routing: give the routers seeded random weights.")
@as_json
def command(
    images: tuple[Path, ...],
    output: Path,
    kind: str,
    diff: tuple[Path, Path] | None,
    collapse: str | None,
    random_routers: int | None,
    as_json: bool,
    **model: Any,
) -> None:
    """Run MODEL on IMAGES; one picture an image."""
    if not images and diff is None:
        raise click.UsageError("Missing IMAGES to draw, or --diff A B.")
    make_folder(output)
    net = open_network(**model)
    if random_routers is not None:
        randomise_routers(net, random_routers)
    layout = lay_out_network(net, collapse)
    document: dict[str, Any] = {"collapse": layout.level}
    document["images"] = draw_paths(net, images, output, SUFFIXES[kind], layout=layout)
    if diff is not None:
        document["difference"] = draw_difference(net, diff, output, SUFFIXES[kind], layout=layout)
    if as_json:
        click.echo(json.dumps(document))
        return
    if images:
        show_rows(document["images"])
    if diff is not None:
        show_difference(document["difference"])
    if message := say_collapsed(net, layout, collapse):
        click.echo(message)


def draw_paths(
    net: "DynamicNetwork", images: Sequence[Path], output: Path, suffix: str, *, layout: "Layout"
) -> list[dict[str, Any]]:
    """Draw every image's path into `output`; one row of facts an image."""
    from dggraph.views.drawing import draw
    from dggraph.views.picture import picture_path

    rows: list[dict[str, Any]] = []
    for number, file in enumerate(images):
        with working(f"Drawing {file.name}"):
            row, path, image = run_image(net, file)
            note = " · the backbone's own path: these routers are untrained, or agree on it" if row["is_static_path"] else ""
            facts = (f"{tell_prediction(row)} · {row['kept']:.3f} of the static network's MACs{note}",)
            picture = picture_path(net.graph, path, title=file.name, facts=facts, layout=layout, thumbnail=image)
            target = output / f"{number:03d}-{_safe(file.stem)}.{suffix}"
            draw(picture, target)
            rows.append(row | {"picture": str(target)})
    return rows


def draw_difference(
    net: "DynamicNetwork", files: tuple[Path, Path], output: Path, suffix: str, *, layout: "Layout"
) -> dict[str, Any]:
    """Draw what only one of two images uses; its facts, with the nodes and edges of each side."""
    from dggraph.views.drawing import draw
    from dggraph.views.picture import picture_difference

    first, second = (run_image(net, file) for file in files)
    names = (files[0].name, files[1].name) if files[0].name != files[1].name else (str(files[0]), str(files[1]))
    picture = picture_difference(
        net.graph, first.path, second.path, names=names, layout=layout, thumbnails=(first.image, second.image)
    )
    target = output / f"diff-{_safe(files[0].stem)}-{_safe(files[1].stem)}.{suffix}"
    draw(picture, target)
    facts: dict[str, Any] = {"images": [first.row, second.row], "picture": str(target)}
    for mark, key in (("first", "only_first"), ("second", "only_second"), ("both", "both")):
        facts[key] = {
            "nodes": [node for node, its in picture.marks.nodes.items() if its == mark],
            "edges": [list(ends) for ends, its in picture.marks.edges.items() if its == mark],
        }
    return facts


def run_image(net: "DynamicNetwork", file: Path) -> Run:
    """Record the path of one image file.

    Raises:
        InputError: no image, or the network does not say how images become its input.
    """
    from dggraph.runtime.preprocessing import open_image, preprocess_image
    from dggraph.runtime.recording import record

    if net.preprocess is None:
        raise InputError("this network does not say how images become its input; give --input-size when converting it.")
    image = open_image(file)
    recording = record(net, preprocess_image(image, net.preprocess))
    (path,) = recording.paths
    is_static = all(
        (weight != 0) == edge.is_static
        for stage, weights in path.weights.items()
        for edge, weight in zip(net.graph.edges(stage), weights, strict=True)
    )
    row: dict[str, Any] = {"image": str(file), "macs": path.macs, "kept": path.macs / net.report.total_macs}
    row |= {"active_edges": len(path.active_edges(net.graph)), "is_static_path": is_static, "margin": path.margin}
    return Run(row | _prediction(net, recording.output), path, image)


def tell_prediction(row: dict[str, Any]) -> str:
    """Label and probability, where the network is a classifier."""
    return f"{row['label']} {row['probability']:.2f}" if "label" in row else "no class scores"


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table, and say so where every image went the static way."""
    from rich.console import Console
    from rich.table import Table

    from dggraph.views.lettering import for_terminal

    table = Table()
    for heading in ("image", "prediction", "MACs kept", "active edges"):
        table.add_column(heading, justify="right" if heading in ("MACs kept", "active edges") else "left", overflow="fold")
    for row in rows:
        cells = (Path(row["image"]).name, tell_prediction(row), f"{row['kept']:.3f}", str(row["active_edges"]))
        table.add_row(*(for_terminal(cell) for cell in cells))
    console = Console()
    console.print(table)
    console.print(for_terminal(f"Pictures are in {Path(rows[0]['picture']).parent}, numbered in this order."), soft_wrap=True)
    if all(row["is_static_path"] for row in rows):
        console.print("Every image took the backbone's own path: untrained routers send every image along the static edges.")


def show_difference(facts: dict[str, Any]) -> None:
    """Print how two paths differ."""
    from dggraph.views.lettering import plural, visible

    names = [visible(Path(row["image"]).name) for row in facts["images"]]
    for key, who in (("only_first", f"only {names[0]}"), ("only_second", f"only {names[1]}"), ("both", "both")):
        click.echo(f"{who}: {plural(len(facts[key]['edges']), 'edge')}, {plural(len(facts[key]['nodes']), 'node')}")
    click.echo(visible(f"picture: {facts['picture']}"))


def randomise_routers(net: "DynamicNetwork", seed: int) -> None:
    """Seeded random weights for every router, so that images part ways."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for stage in net.graph.stages:
            for parameter in net.lowered.get_submodule(f"dg_{stage}").parameters():
                scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * 2)


def _prediction(net: "DynamicNetwork", output: Any) -> dict[str, Any]:
    import torch

    from dggraph.runtime.network import class_names

    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        return {}
    probability, index = output.softmax(1)[0].max(0)
    label = class_names(net, output.shape[1])[int(index)]
    return {"label": label, "index": int(index), "probability": float(probability)}


def _safe(stem: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "_" for char in stem)[:60]
