"""The start of a run: the model, its data, and which of its parameters are trained."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dggraph.baselines.registry import make_baseline, read_method
from dggraph.data.class_names import as_text, describe_renamed
from dggraph.data.sources import open_data
from dggraph.detection.average_precision import require_library
from dggraph.detection.box_data import open_boxes
from dggraph.errors import DggraphError, InputError
from dggraph.models.fewer_blocks import without_blocks
from dggraph.models.origins import checkpoint_origin
from dggraph.models.preprocessing import Preprocess
from dggraph.models.registry import (
    LoadedModel,
    is_registered,
    load_model,
    start_from_,
    takes_num_classes,
)
from dggraph.network.conversion import convert
from dggraph.network.gate_constraints import decide_blocks_, pin_open_
from dggraph.network.network import DynamicNetwork, dynamic_part
from dggraph.network.norms import NORMS
from dggraph.ops.gating import find_gate
from dggraph.system import processes
from dggraph.system.devices import channels_last_
from dggraph.training.classifying import Classifying
from dggraph.training.config import TrainConfig, configured
from dggraph.training.detecting import Detecting
from dggraph.training.detector_runs import build_detector
from dggraph.training.distillation import answered, find_fragile, teacher_of
from dggraph.training.tasks import Task

CLASSIFICATION_KEYS = (
    "objective", "pin_divergence", "mean", "std", "interpolation", "crop_pct", "scale", "ratio",
    "crop_padding", "color_jitter", "domains",
    "randaugment", "reprob", "mixup", "cutmix", "smoothing", "channels_last", "torchcompile",
)  # fmt: skip
"""Keys without a meaning for detectors.

Detectors resize, normalise and batch images themselves, each image to another shape.
"""
DETECTION_KEYS = ("max_size", "on_bad_box")
GRAPH_KEYS = (
    "wiring", "residual", "router", "gate", "granularity", "init", "tune", "decide",
    "pin_divergence", "recompute", "threshold", "threshold_warmup", "temperature", "budget",
    "budget_weight",
)  # fmt: skip
"""Keys of the dynamic graph, without a meaning for other methods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything that a run trains with."""

    model: nn.Module
    """The DynamicNetwork, the static backbone, or a detector on either of them.

    It is on the device, with each module in the mode in which it trains.
    """
    task: Task
    labels: tuple[str, ...]
    """Names of the outputs, if known."""
    preprocess: Preprocess | None
    """How images become the input of a classifier."""
    notes: dict[str, Any]
    """Files for the run folder: sensitivity, data facts, and bad images and boxes."""
    frozen: tuple[str, ...]
    """Names of the parameters that are frozen in this run only."""
    remarks: tuple[str, ...]
    """One sentence per fact that users may not expect."""
    weights_origin: str
    """Where the weights that it starts from come from."""


def prepare(config: TrainConfig) -> Prepared:
    """Build everything that `config` describes.

    Raises:
        InputError: keys do not fit each other, the data or the model.
    """
    _refuse(config)
    how = _prepare_detector if config.task == "detection" else _prepare_classifier
    prepared = how(config)
    net = dynamic_part(prepared.model)
    if net is not None:
        net.recompute = config.recompute
    return prepared


def _prepare_detector(config: TrainConfig) -> Prepared:
    require_library()
    training, validation = open_boxes(config.source)
    skipped = [f"{part.name}: {what}" for part in (training, validation) for what in part.skipped]
    facts = {"train": training.facts, "validation": validation.facts}
    names = as_text(training.classes)
    renamed = describe_renamed(training.classes, names)
    training, validation = replace(training, classes=names), replace(validation, classes=names)
    torch.manual_seed(config.seed)
    detector = build_detector(config, training.classes, is_head_new=True)
    model = detector.model.to(processes.device())
    if detector.net is not None:
        (decide_blocks_ if config.decide == "blocks" else pin_open_)(detector.net, ())
    return Prepared(
        model=model,
        task=Detecting(config=config, training=training, validation=validation),
        labels=training.classes,
        preprocess=None,
        notes={"data.json": facts} | ({"skipped.json": skipped} if skipped else {}),
        frozen=_freeze_(model.train(), config.tune),
        remarks=(*training.notes, *validation.notes, *renamed, *detector.remarks),
        weights_origin=detector.weights_origin,
    )


def _prepare_classifier(config: TrainConfig) -> Prepared:
    is_taught = config.objective == "distill"

    def load(num_classes: int | None) -> LoadedModel:
        torch.manual_seed(config.seed)
        checkpoint = config.checkpoint if is_taught else None
        return load_model(
            config.model,
            num_classes=num_classes,
            checkpoint=checkpoint,
            input_size=config.input_size,
            weights="default" if config.pretrained else "random",
        )

    loaded = load(config.num_classes)
    if loaded.preprocess is None:
        raise InputError(f"{config.model} does not say what images it takes; set input_size.")
    preprocess = configured(loaded.preprocess, config)
    data, labels, remarks, renamed = (
        open_data(config.source, preprocess, config.augmentation),
        loaded.labels or (),
        loaded.remarks,
        list[str](),
    )
    if not is_taught:
        labels = as_text(data.classes)
        renamed = describe_renamed(data.classes, labels)
        data = replace(data, classes=labels)
        if config.num_classes not in (None, len(labels)):
            raise InputError(
                f"{config.dataset} has {len(labels)} classes, but num_classes ="
                f" {config.num_classes}, and an archive names each output. Leave num_classes out:"
                " the network gets one output per class, even if its checkpoint has others."
            )
        if config.num_classes is None and takes_num_classes(config.model):
            loaded = load(len(labels))
            remarks = loaded.remarks
        if config.without:
            smaller = without_blocks(loaded.model, config.removed_blocks)
            loaded = replace(loaded, model=smaller)
        if config.checkpoint is not None:
            remarks = start_from_(loaded, config.checkpoint)
            loaded = replace(loaded, weights_origin=checkpoint_origin(config.checkpoint))
    _refuse_other_outputs(config, loaded.model, preprocess, labels)
    teacher = teacher_of(loaded.model) if is_taught else None
    model = _made(config, loaded, preprocess)
    for one in (model, *([] if teacher is None else [teacher])):
        one.to(processes.device())
        if config.channels_last:
            channels_last_(one)
    how = {"batch_size": config.evaluation_batch_size, "workers": config.workers}
    if teacher is not None:
        data = replace(data, validation=answered(teacher, data.validation, **how))
    sensitivity = None
    if isinstance(model, DynamicNetwork):
        if config.pin_divergence is not None:
            sensitivity = find_fragile(
                model, data.train, config.pin_divergence, seed=config.seed, **how
            )
        pin = decide_blocks_ if config.decide == "blocks" else pin_open_
        pin(model, sensitivity["pinned"] if sensitivity else ())
    notes = {
        "sensitivity.json": sensitivity,
        "data.json": data.facts,
        "skipped.json": list(data.skipped),
    }
    return Prepared(
        model=model,
        task=Classifying(config=config, data=data, teacher=teacher),
        labels=labels,
        preprocess=preprocess,
        notes={name: found for name, found in notes.items() if found},
        frozen=_freeze_(model.train(), config.tune),
        remarks=(*data.notes, *renamed, *remarks),
        weights_origin=loaded.weights_origin,
    )


def _refuse_other_outputs(
    config: TrainConfig, model: nn.Module, preprocess: Preprocess, labels: Sequence[str]
) -> None:
    """Reject a model whose output is not one score per class, by running a copy of it."""
    size = preprocess.input_size
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            output = copy.deepcopy(model)(torch.zeros((1, *size)))
        except DggraphError:
            raise
        except Exception as error:  # a user's forward may raise anything
            raise InputError(
                f"{config.model} fails on an image of {size[0]} x {size[1]} x {size[2]}:"
                f" {type(error).__name__}: {str(error).strip()[:300]}. Set the input_size that it"
                " was made for, or fix its forward."
            ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != 1:
        what = type(output).__name__ if shape is None else f"a tensor of {shape} for one image"
        raise InputError(
            f"{config.model} returns {what}, not one score per class, (1, classes). Wrap it in a"
            " classifier."
        )
    if labels and shape[1] != len(labels):
        raise InputError(
            f"{config.model} returns {shape[1]} outputs for the {len(labels)} classes of"
            f" {config.dataset}. Let its function accept num_classes and build a head of that size."
        )


def _given(config: TrainConfig, keys: Iterable[str]) -> str | None:
    """Return the first of `keys` whose value is not the default, as one would write it."""
    values = {key: getattr(config, key) for key in keys}
    return next(
        (
            f"{key} = {value!r}"
            for key, value in values.items()
            if value != TrainConfig.model_fields[key].default
        ),
        None,
    )


def _refuse(config: TrainConfig) -> None:
    read_method(config.method)
    if config.has_method:
        _refuse_with_method(config)
    if config.router != "none" and config.gate is not None:
        find_gate(config.gate).refuse_threshold(config.final_threshold)
    given = _given(config, ("objective", "tune", "decide", "pin_divergence", "recompute"))
    if config.router == "none" and given:
        raise InputError(
            f"router = 'none' trains the static backbone, for which {given} means nothing. Remove"
            " it, or choose a router."
        )
    if config.without and (config.router != "none" or config.task == "detection"):
        raise InputError(
            f"without = {config.without!r} takes blocks out of the static backbone of a classifier."
            " Set router = 'none', or remove it."
        )
    foreign = _given(config, CLASSIFICATION_KEYS if config.task == "detection" else DETECTION_KEYS)
    if foreign:
        raise InputError(
            f"{foreign} means nothing for {config.task}. Remove it, or choose another task."
        )
    if config.pretrained and config.checkpoint is not None:
        raise InputError(
            "pretrained and checkpoint are two answers to what the model starts from. Leave one of"
            " them out."
        )
    is_random = config.checkpoint is None and not config.pretrained and is_registered(config.model)
    if config.objective == "distill" and is_random:
        raise InputError(
            f"objective = 'distill' learns from the outputs of {config.model}, whose weights would"
            " be random: set pretrained, give trained ones as checkpoint, or a"
            " package.module:function that loads them."
        )
    if config.recompute and config.torchcompile:
        raise InputError(
            "recompute has no effect with torchcompile, which plans its own recomputation. Leave"
            " one of them out."
        )
    if config.objective == "distill" and config.smoothing:
        raise InputError(
            "smoothing is for labels, and objective = 'distill' learns the static network's outputs"
            " unchanged. Remove it."
        )


def _made(config: TrainConfig, loaded: LoadedModel, preprocess: Preprocess) -> nn.Module:
    """Return what is trained: the static backbone, or the network that the method makes of it."""
    example = torch.zeros((1, *preprocess.input_size))
    if config.has_method:
        return make_baseline(config.method, loaded, example)
    return (
        loaded.model if config.router == "none" else convert(loaded, example, **config.conversion)
    )


def _refuse_with_method(config: TrainConfig) -> None:
    given = _given(config, GRAPH_KEYS)
    if given:
        raise InputError(
            f"{given} is for the dynamic graph, and method = {config.method!r} has none. Remove it,"
            " or the method."
        )
    if config.task == "detection":
        raise InputError(
            f"method = {config.method!r} is for classification. Remove it, or choose that task."
        )
    if config.parallel == "fsdp":
        raise InputError(
            f"method = {config.method!r} was not tested on sharded weights. Choose parallel ="
            " 'ddp'."
        )


def _freeze_(model: nn.Module, tune: str) -> tuple[str, ...]:
    """Freeze everything that `tune` does not name, and return the names of the frozen parameters.

    The backbone's modules are put into eval mode, unless everything is tuned.
    """
    net = dynamic_part(model)
    if tune == "all" or net is None:
        return ()
    tuned: set[nn.Parameter] = set()
    for name, module in net.lowered.named_modules():
        if name.startswith("dg_") or (tune == "norms" and isinstance(module, NORMS)):
            tuned.update(module.parameters())
        if name and not name.startswith("dg_"):
            module.training = False
    frozen = {
        name: parameter
        for name, parameter in net.lowered.named_parameters()
        if parameter.requires_grad and parameter not in tuned
    }
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return tuple(frozen)
