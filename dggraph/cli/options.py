"""Options that several commands share, and how they become a network."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.parameters import LocatedPath, WholeNumber, locate_model
from dggraph.errors import InputError

if TYPE_CHECKING:
    from dggraph.evaluation.recording import Predictor
    from dggraph.network.network import DynamicNetwork

INTERRUPTED = 130
"""Exit code of what a signal ended."""
SCORE = 0.5

score_option = click.option(
    "--score",
    type=click.FloatRange(0, 1),
    help=f"Of a detector: outline the objects of this score or more.  [default: {SCORE}]",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document and nothing else."
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """MODEL with what goes with it."""
    for decorate in reversed(
        (
            click.argument("model", callback=locate_model),
            click.option(
                "--checkpoint",
                type=LocatedPath(dir_okay=False),
                help="State dict: .safetensors, or .pth (read without pickle code).",
            ),
            click.option(
                "--num-classes", type=WholeNumber(min=1), help="Outputs of the classifier."
            ),
            click.option(
                "--input-size", type=WholeNumber(min=1), help="Side of the square input in pixels."
            ),
            click.option(
                "--wiring",
                default="complete",
                show_default=True,
                help="complete, chain, window(k), watts_strogatz(k, p, seed), ...",
            ),
            click.option(
                "--residual",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "keep", "lift"]),
            ),
            click.option(
                "--router",
                default="node",
                show_default=True,
                help="node, stage, node(16), or a registered name.",
            ),
            click.option("--gate", help="anchored (default), sigmoid, or a registered name."),
            click.option(
                "--threshold",
                default=0.5,
                show_default=True,
                type=float,
                help="Edges at or below it are dropped.",
            ),
            click.option(
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


def open_network(
    model: str,
    *,
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    input_size: int | None = None,
    wiring: str = "complete",
    residual: Any = "auto",
    router: str = "node",
    gate: str | None = None,
    threshold: float = 0.5,
    backbone: str | None = None,
) -> "DynamicNetwork":
    """An archive folder or the folder of a classifier's run loaded, or a MODEL built and converted.

    Raises:
        click.UsageError: options that an archive or a run has already answered, or --backbone
        without one.
        InputError: MODEL is a folder, but neither of them and no name.
    """
    from dggraph.models.registry import load_model
    from dggraph.network.archive import load
    from dggraph.network.conversion import convert
    from dggraph.network.manifest import MANIFEST, read_manifest
    from dggraph.training.classifier_runs import is_classifier_run, open_classifier

    answered: dict[str, Any] = {
        "checkpoint": checkpoint,
        "num_classes": num_classes,
        "input_size": input_size,
        "wiring": wiring,
    }
    answered |= {"residual": residual, "router": router, "gate": gate, "threshold": threshold}
    if is_classifier_run(model):
        refuse_answered(f"a run folder: {model} says how its network was built.", **answered)
        with working(f"Loading {model}"):
            net, remark = open_classifier(model, backbone)
        _tell([remark] if remark else [])
        return net
    if (Path(model) / MANIFEST).is_file():
        refuse_answered(
            f"an archive: {model} is converted already. Convert its MODEL again.",
            **answered | ({"num_classes": None} if backbone is not None else {}),
        )
        with working(f"Loading {model}"):
            if backbone is None:
                return load(model)
            recorded = (
                read_manifest(Path(model)).num_classes if num_classes is None else num_classes
            )
            return load(model, load_model(backbone, num_classes=recorded).model)
    if backbone is not None:
        raise click.UsageError(f"--backbone goes with an archive, and {model} is none.")
    with working(f"Converting {model}"):
        try:
            built = load_model(
                model, num_classes=num_classes, checkpoint=checkpoint, input_size=input_size
            )
        except InputError as error:
            if model and ":" not in model and Path(model).is_dir():
                raise InputError(
                    f"{model} is a folder, but no dggraph archive: it has no {MANIFEST}."
                ) from error
            raise
        net = convert(
            built,
            wiring=wiring,
            residual=residual,
            router=router,
            gate=gate,
            threshold=threshold,
        )
    _tell(built.remarks)
    return net


def _tell(sentences: Iterable[str]) -> None:
    from dggraph.views.escaping import visible

    for sentence in sentences:
        click.echo(f"dggraph: {visible(sentence)}.", err=True)


def open_predictor(model: str, *, score: float | None, **options: Any) -> "Predictor":
    """What `open_network` opens, or the detector of a run folder, to be shown images.

    Raises:
        click.UsageError: options that the run has already answered, or a score without a detector;
        or as for `open_network`.
        InputError: the run's backbone is static, or the network does not say how images become its
            input.
    """
    from dggraph.detection.recording import make_detector_predictor
    from dggraph.evaluation.recording import make_predictor
    from dggraph.training.detector_runs import is_detector_run, open_detector

    if not is_detector_run(model):
        if score is not None:
            raise click.UsageError(
                f"--score goes with the run folder of a detector, and {model} is none."
            )
        return make_predictor(open_network(model, **options))
    backbone = options.pop("backbone")
    refuse_answered(f"a run folder: {model} says how its detector was built.", **options)
    with working(f"Loading {model}"):
        detector = open_detector(model, backbone)
    if detector.net is None:
        raise InputError(
            f"the detector in {model} has a static backbone, so there are no paths. Train one with"
            " routers."
        )
    return make_detector_predictor(
        detector.model, detector.net, classes=detector.classes, name=Path(model).resolve().name
    )


def refuse_answered(what: str, **options: Any) -> None:
    """Refuse model options that `what` has answered already.

    Raises:
        click.UsageError: names one that is not at its default.
    """
    defaults = {"wiring": "complete", "residual": "auto", "router": "node", "threshold": 0.5}
    given = next((name for name, value in options.items() if value != defaults.get(name)), None)
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
    """A spinner on the terminal while something takes long; nothing where stderr is not a
    terminal.
    """
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(what)):
        yield
