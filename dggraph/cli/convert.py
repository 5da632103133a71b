"""`dggraph convert`: a backbone in, an archive out."""

import json
from pathlib import Path
from typing import Any

import click

from dggraph.cli.inspect import show_report
from dggraph.cli.options import as_json, model_options, open_network
from dggraph.errors import InputError


@click.command()
@model_options
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Archive folder to write.")
@click.option("--force", is_flag=True, help="Replace an archive that is there.")
@as_json
def command(output: Path, force: bool, as_json: bool, **model: Any) -> None:
    """Convert MODEL, check that it equals the backbone, and save it."""
    from dggraph.runtime.archive import save

    if output.exists() and not force:
        raise InputError(f"{output} exists; choose another folder, or --force to replace an archive.")
    net = open_network(**model)
    save(net, output)
    if as_json:
        click.echo(json.dumps({"archive": str(output), "num_edges": net.report.num_edges, "num_blocks": net.report.num_blocks}))
    else:
        show_report(net.report)
        click.echo(f"saved to {output}")
