"""`dggraph models`: the names that can be built here."""

import json

import click

from dggraph.cli.options import as_json
from dggraph.errors import InputError


@click.command()
@click.argument("pattern", default="")
@as_json
def command(pattern: str, as_json: bool) -> None:
    """List model names that contain PATTERN, in any case.

    These are torchvision's classifiers, and timm's where timm is installed.
    """
    from dggraph.models.registry import model_names

    names = [name for name in model_names() if pattern.lower() in name.lower()]
    if not names:
        raise InputError(
            f"no model name contains {pattern!r}; `dggraph models` alone lists them all."
        )
    click.echo(json.dumps({"models": names}) if as_json else "\n".join(names))
