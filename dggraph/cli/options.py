"""Options that several commands share, and what is made sure of before the work."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from dggraph.cli.parameters import Device, LocatedPath, Number, WholeNumber, locate_model
from dggraph.cli.sections import SectionedOption
from dggraph.errors import InputError

FAILED = 4
"""Exit code of bad input, of failed runs of a comparison, and of what nobody foresaw."""
INTERRUPTED = 130
"""Exit code of what a signal ended."""
SCORE = 0.5

score_option = click.option(
    "--score",
    type=Number(0, 1),
    help=f"Of a detector: outline the objects of this score or more.  [default: {SCORE}]",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)

device_option = click.option(
    "--device",
    type=Device(),
    default="cpu",
    show_default=True,
    help="Where the network runs: cpu, cuda, cuda:1, mps.",
)
accelerator_option = click.option(
    "--device",
    type=Device(),
    help="Where the network runs: cpu, cuda, cuda:1, mps; by default a GPU where there is one.",
)


_of_model = partial(click.option, cls=SectionedOption, section="Model")
_of_routing = partial(click.option, cls=SectionedOption, section="Routing")


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL with what goes with it."""
    for decorate in reversed(
        (
            click.argument("model", callback=locate_model),
            _of_model(
                "--checkpoint",
                type=LocatedPath(dir_okay=False),
                help="State dict: .safetensors, or .pth (read without pickle code).",
            ),
            _of_model(
                "--pretrained",
                is_flag=True,
                help="Begin with the default weights of torchvision or timm, fetched once.",
            ),
            _of_model(
                "--num-classes",
                type=WholeNumber(min=1),
                help="Outputs of the classifier.",
            ),
            _of_model(
                "--input-size",
                type=WholeNumber(min=1),
                help="Side of the square input in pixels.",
            ),
            _of_routing(
                "--wiring",
                default="complete",
                show_default=True,
                help="complete, chain, window(k)+entry, dilated(k, p), erdos_renyi(p, seed), ...",
            ),
            _of_routing(
                "--residual",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "keep", "lift"]),
            ),
            _of_routing(
                "--router",
                default="node",
                show_default=True,
                help="node, stage, node(16), content, tied, constant, or a registered name.",
            ),
            _of_routing(
                "--gate",
                help="anchored (default), shrink, scaled, softmax, sigmoid, or a registered name.",
            ),
            _of_routing(
                "--granularity",
                default="edge",
                show_default=True,
                help="Weights of an edge: edge, a number of channel groups, channel, or pixel.",
            ),
            _of_routing(
                "--aggregation",
                default="sum",
                show_default=True,
                type=click.Choice(["sum", "additive"]),
                help="Weighted sums of sources, or additions to plain ones (lifted residuals).",
            ),
            _of_routing(
                "--threshold",
                default=0.5,
                show_default=True,
                type=Number(0, 1, max_open=True),
                help="Edges at or below it are dropped.",
            ),
            _of_model(
                "--backbone",
                metavar="MODULE:FUNCTION",
                help=(
                    "For an archive, or the run of a detector, of a model of your own: what builds"
                    " it, imported and called."
                ),
            ),
        )
    ):
        function = decorate(function)
    return function


def refuse_answered(what: str, **options: Any) -> None:
    """Refuse model options that `what` has answered already.

    Raises:
        click.UsageError: names one that is given, or is not at its default.
    """
    defaults = {
        "pretrained": False,
        "wiring": "complete",
        "residual": "auto",
        "router": "node",
        "granularity": "edge",
        "aggregation": "sum",
        "threshold": 0.5,
    }
    context = click.get_current_context(silent=True)
    written = {
        name
        for name in defaults
        if context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    given = next(
        (name for name, value in options.items() if value != defaults.get(name) or name in written),
        None,
    )
    if given is not None:
        raise click.UsageError(f"--{given.replace('_', '-')} does not go with {what}")


def make_folder(folder: Path) -> None:
    """Make `folder`, and try to write there, before the work that will.

    Raises:
        InputError: a file is in the way, or it may not be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror or error}. Choose another one."
        ) from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {folder}: {error.strerror or error}. Choose another one."
        ) from error


@contextmanager
def working(what: str) -> Iterator[None]:
    """Show a spinner within this context, if stderr is a terminal."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(what)):
        yield
