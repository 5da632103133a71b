"""What a run starts from, as its configuration says: the model, what it learns from, and what of it learns."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dggraph.errors import InputError
from dggraph.runtime import processes
from dggraph.runtime.conversion import convert, note_source_
from dggraph.runtime.models import LoadedModel, is_registered, load_model
from dggraph.runtime.network import DynamicNetwork
from dggraph.runtime.norms import NORMS
from dggraph.runtime.pinning import decide_blocks_, pin_open_
from dggraph.runtime.preprocessing import Preprocess
from dggraph.training.config import TrainConfig
from dggraph.training.data import TrainingData, configured, open_data
from dggraph.training.distillation import answered, find_fragile, teacher_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Ready to train."""

    model: nn.Module
    """The DynamicNetwork, or the static backbone; on the device, in the modes that it trains in."""
    teacher: nn.Module | None
    """Whose outputs are learned, for distillation."""
    data: TrainingData
    """For distillation the labels of the validation set are the teacher's answers."""
    labels: tuple[str, ...]
    """Names of the outputs, where known."""
    preprocess: Preprocess
    sensitivity: dict[str, Any] | None
    """What pinning found."""
    held: tuple[str, ...]
    """Parameters that would learn, and are held as they came."""


def prepare(config: TrainConfig) -> Prepared:
    """Build all that `config` names.

    Raises:
        InputError: keys that do not fit each other, the data or the model.
    """
    _refuse(config)

    def load(num_classes: int | None) -> LoadedModel:
        torch.manual_seed(config.seed)
        return load_model(config.model, num_classes=num_classes, checkpoint=config.checkpoint, input_size=config.input_size)

    loaded = load(config.num_classes)
    if loaded.preprocess is None:
        raise InputError(f"{config.model} does not say what images it takes; give input_size.")
    preprocess = configured(loaded.preprocess, config)
    data, labels = open_data(config, preprocess), loaded.labels or ()
    if config.objective == "labels":
        labels = data.classes
        if config.num_classes is None:
            loaded = load(len(data.classes))
    teacher = teacher_of(loaded.model) if config.objective == "distill" else None
    model = loaded.model if config.router == "none" else _converted(config, loaded, preprocess)
    for one in (model, *([] if teacher is None else [teacher])):
        one.to(processes.device())
        if config.channels_last:
            one.to(memory_format=torch.channels_last)
    how = {"batch_size": config.validation_batch_size, "workers": config.workers}
    if teacher is not None:
        data = replace(data, validation=answered(teacher, data.validation, **how))
    sensitivity = None
    if isinstance(model, DynamicNetwork):
        if config.pin_divergence is not None:
            sensitivity = find_fragile(model, data.train, config.pin_divergence, seed=config.seed, **how)
        pin = decide_blocks_ if config.decide == "blocks" else pin_open_
        pin(model, sensitivity["pinned"] if sensitivity else ())
    held = _hold_(model.train(), config.tune)
    return Prepared(
        model=model, teacher=teacher, data=data, labels=labels, preprocess=preprocess, sensitivity=sensitivity, held=held
    )


def _refuse(config: TrainConfig) -> None:
    defaults = {key: TrainConfig.model_fields[key].default for key in ("objective", "tune", "decide", "pin_divergence")}
    given = [f"{key} = {getattr(config, key)!r}" for key, default in defaults.items() if getattr(config, key) != default]
    if config.router == "none" and given:
        raise InputError(f"router = 'none' trains the static backbone, for which {given[0]} means nothing. Choose a router.")
    if config.objective == "distill" and config.checkpoint is None and is_registered(config.model):
        raise InputError(
            f"objective = 'distill' learns from the outputs of {config.model}, whose weights would be random: give its trained ones as "
            "checkpoint, or a package.module:function that loads them."
        )
    if config.objective == "distill" and config.smoothing:
        raise InputError("smoothing is for labels; the static network's outputs are learned as they are. Leave it out.")


def _converted(config: TrainConfig, loaded: LoadedModel, preprocess: Preprocess) -> DynamicNetwork:
    net = convert(
        loaded.model,
        torch.zeros((1, *preprocess.input_size)),
        wiring=config.wiring,
        residual=config.residual,
        router=config.router,
        gate=config.gate,
        init=config.init,
        threshold=0.0 if config.threshold_warmup else config.threshold,
    )
    note_source_(net, loaded)
    return net


def _hold_(model: nn.Module, tune: str) -> tuple[str, ...]:
    """Unless everything is tuned, put the backbone's modules into eval mode and hold what is not tuned; returns the parameters held."""
    if tune == "all" or not isinstance(model, DynamicNetwork):
        return ()
    tuned: set[nn.Parameter] = set()
    for name, module in model.lowered.named_modules():
        if name.startswith("dg_") or (tune == "norms" and isinstance(module, NORMS)):
            tuned.update(module.parameters())
        if name and not name.startswith("dg_"):
            module.training = False
    held = {
        name: parameter
        for name, parameter in model.lowered.named_parameters()
        if parameter.requires_grad and parameter not in tuned
    }
    for parameter in held.values():
        parameter.requires_grad_(False)
    return tuple(held)
