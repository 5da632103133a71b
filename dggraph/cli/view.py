"""`dggraph view`: a page on this computer, on which photos are dropped and their paths seen."""

import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.layouts import lay_out_network
from dggraph.cli.networks import open_predictor, warn_of_random
from dggraph.cli.options import SCORE, device_option, model_options, score_option
from dggraph.cli.parameters import LocatedPath, WholeNumber
from dggraph.cli.sections import SectionedCommand
from dggraph.errors import MissingExtraError

if TYPE_CHECKING:
    import torch

PACKAGES = ("flask", "waitress")


@click.command(cls=SectionedCommand)
@model_options
@click.argument("images", required=False, type=LocatedPath())
@click.option(
    "--port",
    default=0,
    type=WholeNumber(0, 65535),
    help="Port on this computer's own address.  [default: any free one]",
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in the browser.")
@score_option
@device_option
def command(
    images: Path | None,
    port: int,
    is_opened: bool,
    score: float | None,
    device: "torch.device",
    **model: Any,
) -> None:
    """Serve a page on which the paths of photos through MODEL are seen.

    Photos are dropped on the page, or come from IMAGES, a file or a folder. The
    page moves the threshold, compares two photos, and says which photos use an
    edge. It answers this computer alone, and no request leaves it. Ctrl-C ends it.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"dggraph view needs {' and '.join(missing)}: pip install 'dggraph[view]'."
        )

    from dggraph.viewing.app import make_app
    from dggraph.viewing.confinement import list_given
    from dggraph.viewing.fragments import PageContext
    from dggraph.viewing.gallery import Gallery
    from dggraph.viewing.runs import Runs
    from dggraph.viewing.server import bind, hosts_of, serve
    from dggraph.views.escaping import visible

    given = None if images is None else list_given(images)
    notes = () if given is None else given.notes
    with bind(port) as bound:
        predictor = open_predictor(score=score, device=device, **model)
        gallery = Gallery(given)
        context = PageContext(
            runs=Runs(predictor, gallery),
            layout=lay_out_network(predictor.net, None),
            score=SCORE if score is None else score,
            notes=notes,
        )
        token, hosts = secrets.token_urlsafe(18), hosts_of(bound)
        app = make_app(context, gallery, token=token, hosts=hosts)
        for note in notes:
            click.echo(visible(f"note: {note}"))
        warn_of_random(predictor.net.weights_origin, str(model["model"]))
        address = f"http://{':'.join(map(str, bound.getsockname()))}/{token}/"
        click.echo(f"The page is at {address}\nCtrl-C ends it.")
        if is_opened:
            click.launch(address)
        serve(app, bound)
    click.echo("\nStopped.")
