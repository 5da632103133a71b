"""`dggraph paths`: the path that each image takes, drawn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.options import as_json, make_folder, model_options, open_network, working
from dggraph.errors import InputError

if TYPE_CHECKING:
    from dggraph.runtime.network import DynamicNetwork


@click.command()
@model_options
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for the pictures.")
@click.option("--format", "kind", default="svg", show_default=True, type=click.Choice(["svg", "png", "pdf", "dot"]))
@click.option("--random-routers", type=int, metavar="SEED", help="Try out routing: give the routers seeded random weights.")
@as_json
def command(images: tuple[Path, ...], output: Path, kind: str, random_routers: int | None, as_json: bool, **model: Any) -> None:
    """Run MODEL on IMAGES; one picture an image."""
    make_folder(output)
    net = open_network(**model)
    if random_routers is not None:
        randomise_routers(net, random_routers)
    rows = draw_paths(net, images, output, kind)
    if as_json:
        click.echo(json.dumps({"images": rows}))
    else:
        show_rows(rows)


def draw_paths(net: "DynamicNetwork", images: tuple[Path, ...], output: Path, kind: str) -> list[dict[str, Any]]:
    """Draw every image's path into `output`; one row of facts an image."""
    from dggraph.runtime.preprocessing import open_image, preprocess_image
    from dggraph.runtime.recording import record
    from dggraph.views.drawing import draw, render

    if net.preprocess is None:
        raise InputError("this network does not say how images become its input; give --input-size when converting it.")
    rows: list[dict[str, Any]] = []
    for number, file in enumerate(images):
        with working(f"Drawing {file.name}"):
            recording = record(net, preprocess_image(open_image(file), net.preprocess))
            (path,) = recording.paths
            is_static = all(
                (weight != 0) == edge.is_static
                for stage, weights in path.weights.items()
                for edge, weight in zip(net.graph.edges(stage), weights, strict=True)
            )
            row: dict[str, Any] = {"image": str(file), "macs": path.macs, "kept": path.macs / net.report.total_macs}
            row |= {"active_edges": len(path.active_edges(net.graph)), "is_static_path": is_static, "margin": path.margin}
            row |= _prediction(net, recording.output)
            note = "  ·  the backbone's own path: these routers are untrained, or agree on it" if is_static else ""
            title = f"{file.name}  ·  {row.get('label', '')} {row.get('probability', 0):.2f}{note}"
            target = output / f"{number:03d}-{_safe(file.stem)}.{kind}"
            draw(render(net.graph, path, title=title), target)
            rows.append(row | {"picture": str(target)})
    return rows


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table, and say so where every image went the static way."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for heading in ("image", "prediction", "MACs kept", "active edges", "picture"):
        table.add_column(heading, justify="right" if heading in ("MACs kept", "active edges") else "left", overflow="fold")
    for row in rows:
        prediction = f"{row.get('label', '-')} {row.get('probability', 0):.2f}"
        names = (Path(row["image"]).name, Path(row["picture"]).name)
        cells = (names[0], prediction, f"{row['kept']:.3f}", str(row["active_edges"]), names[1])
        table.add_row(*(escape(str(cell)) for cell in cells))
    console = Console()
    console.print(table)
    console.print(escape(f"pictures are in {Path(rows[0]['picture']).parent}"), soft_wrap=True)
    if all(row["is_static_path"] for row in rows):
        console.print("Every image took the backbone's own path: untrained routers send every image along the static edges.")


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

    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        return {}
    probability, index = output.softmax(1)[0].max(0)
    label = net.labels[int(index)] if net.labels is not None and len(net.labels) == output.shape[1] else f"class {int(index)}"
    return {"label": label, "index": int(index), "probability": float(probability)}


def _safe(stem: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "-_") else "_" for char in stem)[:60]
