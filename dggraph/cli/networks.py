"""MODEL on the command line: a name, an archive or the folder of a run, made a network."""

import gc
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dggraph.cli.options import refuse_answered, working
from dggraph.errors import InputError, UnknownModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dggraph.baselines.network import BaselineNetwork
    from dggraph.evaluation.recording import Predictor
    from dggraph.network.network import DynamicNetwork

Kind = Literal["name", "archive", "classifier run", "detector run"]

KINDS = (
    "MODEL is a name (resnet50, timm:regnety_008, dggraph:resnet20_8, package.module:function), an"
    " archive, or the folder of a run"
)


def kind_of(model: str) -> Kind:
    """What `model` is, by what lies in the folder of that name; a name where there is none."""
    if not (model and Path(model).is_dir()):
        return "name"
    from dggraph.network.manifest import MANIFEST
    from dggraph.training.classifier_runs import is_classifier_run
    from dggraph.training.detector_runs import is_detector_run

    if (Path(model) / MANIFEST).is_file():
        return "archive"
    if is_classifier_run(model):
        return "classifier run"
    return "detector run" if is_detector_run(model) else "name"


def open_network(model: str, *, backbone: str | None = None, **options: Any) -> "DynamicNetwork":
    """What `open_classifier` opens, if it has paths.

    Raises:
        InputError: `model` is the network of a baseline; or as for `open_classifier`.
        click.UsageError: as for `open_classifier`.
    """
    import_torch()
    from dggraph.baselines.network import BaselineNetwork

    net = open_classifier(model, backbone=backbone, **options)
    if isinstance(net, BaselineNetwork):
        raise InputError(
            f"{model} holds a network of the method {net.method!r}, which has no graph and no"
            " paths. `dggraph eval` measures its accuracy."
        )
    return net


def open_classifier(
    model: str, *, backbone: str | None = None, **options: Any
) -> "DynamicNetwork | BaselineNetwork":
    """An archive or the run of a classifier loaded, or the backbone of that name converted.

    Args:
        model: MODEL.
        backbone: what builds it, for an archive or a run of a model of the user's own.
        options: those of `model_options`.

    Raises:
        click.UsageError: options that an archive or a run has already answered, or `backbone`
            without one.
        InputError: `model` is none of the three, or the run of a detector; or as for `load_model`.
    """
    import_torch()
    kind = kind_of(model)
    if kind == "archive":
        return _load_archive(model, backbone, options)
    if kind == "classifier run":
        from dggraph.training.classifier_runs import open_classifier as open_run

        refuse_answered(f"a run folder: {model} says how its network was built.", **options)
        with working(f"Loading {model}"):
            net, remark = open_run(model, backbone)
        _tell([remark] if remark else [])
        return net
    if kind == "detector run":
        raise InputError(
            f"{model} is the run of a detector, which `dggraph paths`, `atlas` and `eval` take."
        )
    if backbone is not None:
        raise click.UsageError(
            f"--backbone goes with an archive or a run, and {model} is neither. {KINDS}."
        )
    return _convert(model, **options)


def import_torch() -> None:
    """Import torch and torchvision, the first time without Python's garbage collector.

    What they make stays for good. Searching it for garbage again and again would take a tenth of
    the time of a short command; later collections skip it too.
    """
    if "torchvision" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        import_module("torchvision")
    finally:
        gc.freeze()
        gc.enable()


def _load_archive(
    model: str, backbone: str | None, options: dict[str, Any]
) -> "DynamicNetwork | BaselineNetwork":
    from dggraph.baselines.archive import load, stored_classes
    from dggraph.models.registry import load_model

    refuse_answered(
        f"an archive: {model} is converted already. Convert its MODEL again.",
        **options | ({"num_classes": None} if backbone is not None else {}),
    )
    with working(f"Loading {model}"):
        if backbone is None:
            return load(model)
        given = options["num_classes"]
        recorded = stored_classes(Path(model)) if given is None else given
        return load(model, load_model(backbone, num_classes=recorded).model)


def _convert(
    model: str,
    *,
    checkpoint: Path | None,
    num_classes: int | None,
    input_size: int | None,
    pretrained: bool,
    **options: Any,
) -> "DynamicNetwork":
    if pretrained and (checkpoint is not None or num_classes is not None):
        other = "--checkpoint" if checkpoint is not None else "--num-classes"
        raise click.UsageError(
            f"--pretrained brings weights and classes of its own, so {other} does not go with it."
            + (" `dggraph train --pretrained` learns other classes." if num_classes else "")
        )
    from dggraph.models.registry import load_model
    from dggraph.network.conversion import convert

    with working(f"Converting {model}"):
        try:
            built = load_model(
                model,
                num_classes=num_classes,
                checkpoint=checkpoint,
                input_size=input_size,
                weights="default" if pretrained else "random",
            )
        except UnknownModelError as error:
            raise UnknownModelError(f"{_what_is_there(model) or error} {KINDS}.") from error
        net = convert(built, **options)
    _tell(built.remarks)
    return net


def _what_is_there(model: str) -> str:
    """A sentence about a path that was meant to be an archive or a run; empty for a name."""
    if model and Path(model).is_dir():
        return (
            f"{model} is a folder, but no dggraph archive and no run: it has neither manifest.json"
            " nor config.json."
        )
    is_path = model.startswith((".", "/")) or "/" in model
    return (
        f"there is no model {model!r}, and nothing lies at that path."
        if is_path and not Path(model).exists()
        else ""
    )


def backbone_facts(
    net: "DynamicNetwork", model: str, backbone: str | None
) -> tuple[str, tuple[str, ...]]:
    """Return the name of what builds the backbone of `net`, and the blocks that were taken out.

    Args:
        net: as `open_network` gave it.
        model: as it was given to `open_network`.
        backbone: as it was given to `open_network`.
    """
    if kind_of(model) == "classifier run":
        from dggraph.training.classifier_runs import run_config

        config = run_config(model)
        return backbone or config.model, config.removed_blocks
    name = backbone or net.source
    assert name is not None, "a network of the command line has a name or is given --backbone"
    return name, ()


def rebuild_backbone(net: "DynamicNetwork", model: str, backbone: str | None) -> "nn.Module":
    """The static backbone of `net`, built anew, in eval mode, with other weights.

    Arguments are those of `backbone_facts`.
    """
    from dggraph.models.fewer_blocks import without_blocks
    from dggraph.models.registry import load_model

    name, removed = backbone_facts(net, model, backbone)
    options = net.source_options
    built = load_model(
        name, num_classes=options.get("num_classes"), input_size=options.get("image_size")
    ).model
    return without_blocks(built, removed) if removed else built


def warn_of_random(origin: str, model: str) -> None:
    """Say it where what is about to be shown means nothing, since nobody trained the weights."""
    from dggraph.models.origins import RANDOM
    from dggraph.views.escaping import visible

    if origin == RANDOM:
        click.echo(
            f"! {visible(model)} has random weights, so its answers and paths mean nothing. Trained"
            " ones come with --pretrained, --checkpoint FILE, or by `dggraph train`."
        )


def _tell(sentences: Iterable[str]) -> None:
    from dggraph.views.escaping import visible

    for sentence in sentences:
        click.echo(f"dggraph: {visible(sentence)}.", err=True)


def open_predictor(
    model: str, *, score: float | None, device: "torch.device", **options: Any
) -> "Predictor":
    """What `open_network` opens, or the detector of a run folder, to be shown images on `device`.

    Raises:
        click.UsageError: options that the run has already answered, or a score without a detector;
            or as for `open_network`.
        InputError: the run's backbone is static, or the network does not say how images become its
            input.
    """
    from dggraph.detection.recording import make_detector_predictor
    from dggraph.evaluation.recording import make_predictor
    from dggraph.training.detector_runs import open_detector

    if kind_of(model) != "detector run":
        if score is not None:
            raise click.UsageError(
                f"--score goes with the run folder of a detector, and {model} is none."
            )
        return make_predictor(open_network(model, **options).to(device))
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
        detector.model.to(device),
        detector.net,
        classes=detector.classes,
        name=Path(model).resolve().name,
    )
