"""`dggraph demo`: convert, inspect and draw, on bundled photos and without network."""

from importlib.resources import as_file, files
from pathlib import Path

import click

from dggraph.cli.inspect import show_report
from dggraph.cli.options import make_folder, open_network
from dggraph.cli.paths import draw_paths, randomise_routers, show_rows

PHOTOS = ("chelsea.jpg", "coffee.jpg")


@click.command()
@click.option("--checkpoint", type=click.Path(dir_okay=False), help="Trained MobileNetV2 weights; random ones otherwise.")
@click.option("-o", "--output", default=Path("dggraph-demo"), show_default=True, type=click.Path(path_type=Path))
def command(checkpoint: str | None, output: Path) -> None:
    """Convert MobileNetV2, inspect it, save it, and draw the paths of two photos."""
    from dggraph.runtime.archive import save
    from dggraph.views.drawing import draw
    from dggraph.views.layout import lay_out
    from dggraph.views.picture import picture_graph

    make_folder(output)
    net = open_network("mobilenet_v2", checkpoint=checkpoint)
    show_report(net.report)
    save(net, output / "archive")
    layout = lay_out(net.graph)
    draw(picture_graph(net.graph, title="MobileNetV2 as a dynamic graph", layout=layout), output / "graph.svg")
    with as_file(files("dggraph") / "assets") as assets:
        photos = tuple(assets / name for name in PHOTOS)
        show_rows(draw_paths(net, photos, output / "static", "svg", layout=layout))
        randomise_routers(net, seed=0)
        click.echo("With seeded random routers, to see routing at work (predictions then mean nothing):")
        show_rows(draw_paths(net, photos, output / "random-routers", "svg", layout=layout))
    if checkpoint is None:
        click.echo("The weights are random, so the predictions mean nothing; --checkpoint takes trained ones.")
    click.echo(f"Pictures and the archive are in {output.resolve()}")
