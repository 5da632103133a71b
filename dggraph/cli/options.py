"""Options that several commands share, and how they become a network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dggraph.runtime.network import DynamicNetwork

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL with what goes with it."""
    for decorate in reversed(
        (
            click.argument("model"),
            click.option(
                "--checkpoint",
                type=click.Path(dir_okay=False),
                help="State dict: .safetensors, or .pth (read without pickle code).",
            ),
            click.option("--num-classes", type=click.IntRange(min=1), help="Outputs of the classifier."),
            click.option("--input-size", type=click.IntRange(min=1), help="Side of the square input in pixels."),
            click.option(
                "--wiring",
                default="complete",
                show_default=True,
                help="complete, chain, window(k), watts_strogatz(k, p, seed), ...",
            ),
            click.option("--residual", default="auto", show_default=True, type=click.Choice(["auto", "keep", "lift"])),
            click.option("--router", default="node", show_default=True, type=click.Choice(["node", "stage"])),
        )
    ):
        function = decorate(function)
    return function


def open_network(
    model: str,
    *,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    input_size: int | None = None,
    wiring: str = "complete",
    residual: Any = "auto",
    router: str = "node",
) -> "DynamicNetwork":
    """An archive folder loaded, or a MODEL built and converted."""
    from dggraph.runtime.archive import load
    from dggraph.runtime.conversion import convert
    from dggraph.runtime.manifest import MANIFEST
    from dggraph.runtime.models import load_model

    if (Path(model) / MANIFEST).is_file():
        with working(f"Loading {model}"):
            return load(model)
    with working(f"Converting {model}"):
        built = load_model(model, num_classes=num_classes, checkpoint=checkpoint, input_size=input_size)
        example = None
        if built.preprocess is not None:
            import torch

            example = torch.zeros((1, *built.preprocess.input_size))
        net = convert(built.model, example, wiring=wiring, residual=residual, router=router)
    net.source, net.preprocess, net.labels = built.source, built.preprocess, built.labels
    return net


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on the terminal while something takes long; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(what)):
        yield
