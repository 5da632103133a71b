"""`dggraph demo`: the trained network in the package on twenty images, their paths and a report."""

from importlib.resources import as_file, files
from pathlib import Path

import click

from dggraph.cli.layouts import lay_out_network
from dggraph.cli.options import make_folder, working
from dggraph.cli.parameters import LocatedPath
from dggraph.cli.paths import draw_paths, show_rows
from dggraph.cli.picture_files import place_pictures


@click.command()
@click.option("-o", "--output", default=Path("dggraph-demo"), show_default=True, type=LocatedPath())
def command(output: Path) -> None:
    """Classify twenty pieces of clothing, draw their paths, and write the report.

    It works offline.
    """
    make_folder(output)

    from dggraph.baselines.pretrained import from_pretrained
    from dggraph.data.image_sets import open_image_set
    from dggraph.evaluation.atlas import collect_atlas
    from dggraph.network.network import DynamicNetwork
    from dggraph.system.files import write_whole
    from dggraph.views.drawing import draw
    from dggraph.views.escaping import visible
    from dggraph.views.report import make_report

    with as_file(files("dggraph") / "assets") as assets:
        with working("Loading"):
            net = from_pretrained("fashion_mnist")
        assert isinstance(net, DynamicNetwork)
        samples = assets / "samples"
        images = sorted(samples.glob("*.png"))
        targets, _ = place_pictures(images, None, output / "paths", "svg")
        show_rows(draw_paths(net, images, targets, draw, layout=lay_out_network(net, None)))
        click.echo(f"Pictures are in {output / 'paths'}, numbered in this order.")
        with working("Writing the report"):
            collected = collect_atlas(net, open_image_set(samples))
            report = make_report(net.graph, collected.atlas, collected.thumbnails)
            write_whole(output / "report.html", report.html.encode())
    click.echo(visible(f"{report.summary}."))
    click.echo(f"Open {(output / 'report.html').resolve()} in a browser.")
