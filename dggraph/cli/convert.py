"""`dggraph convert`: a backbone in, an archive out."""

import json
from pathlib import Path
from typing import Any

import click

from dggraph.cli.inspect import show_report
from dggraph.cli.networks import open_network, warn_of_random
from dggraph.cli.options import as_json, make_folder, model_options
from dggraph.cli.parameters import LocatedPath
from dggraph.cli.sections import SectionedCommand
from dggraph.errors import InputError


@click.command(cls=SectionedCommand)
@model_options
@click.option("-o", "--output", required=True, type=LocatedPath(), help="Archive folder to write.")
@click.option("--force", is_flag=True, help="Replace an archive that is there.")
@as_json
def command(output: Path, force: bool, as_json: bool, **model: Any) -> None:
    """Convert MODEL, check that it equals the backbone, and save it."""
    from dggraph.models.registry import is_registered
    from dggraph.network.archive import save
    from dggraph.network.manifest import MANIFEST

    is_archive = (output / MANIFEST).is_file()
    if output.exists() and not (force and is_archive):
        way_out = (
            "choose another folder, or --force to replace it"
            if is_archive
            else "it is not an archive; choose another folder"
        )
        raise InputError(f"{output} exists; {way_out}.")
    make_folder(output.parent)
    net = open_network(**model)
    save(net, output)
    needs_backbone = not is_registered(net.source)
    if as_json:
        facts = {
            "archive": str(output),
            "weights_origin": net.weights_origin,
            "num_edges": net.report.num_edges,
            "num_blocks": net.report.num_blocks,
        }
        click.echo(json.dumps(facts | {"needs_backbone": needs_backbone}))
        return
    show_report(net.report, net.weights_origin)
    click.echo(f"saved to {output}")
    warn_of_random(net.weights_origin, str(model["model"]))
    if needs_backbone:
        click.echo(
            f"An archive never runs code, so give --backbone {net.source or 'MODULE:FUNCTION'}"
            " wherever you use this one."
        )
