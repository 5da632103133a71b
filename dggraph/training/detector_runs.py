"""Trained detectors: built from a configuration, and read back from a run folder."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from dggraph.detection.detectors import EXAMPLE_SIDE, convert_backbone_
from dggraph.detection.registry import has_frozen_norms, load_detector
from dggraph.errors import ArchiveError, InputError
from dggraph.models.origins import TRAINED
from dggraph.models.registry import is_registered
from dggraph.network.network import DynamicNetwork
from dggraph.network.standin import note_weights_
from dggraph.training.config import TrainConfig, read_config
from dggraph.training.runs import WEIGHTS


@dataclass(frozen=True, slots=True)
class Detector:
    """A detector and the facts about it."""

    model: nn.Module
    """Maps images (3, H, W) in [0, 1] to boxes, labels from 1 and scores."""
    net: DynamicNetwork | None
    """Its dynamic backbone; None if the backbone is static."""
    classes: tuple[str, ...]
    """Label k is `classes[k - 1]`."""
    config: TrainConfig
    """The configuration that it was built from."""
    remarks: tuple[str, ...]
    """As in `LoadedDetector`."""
    weights_origin: str
    """As in `LoadedDetector`."""


def build_detector(
    config: TrainConfig,
    classes: tuple[str, ...],
    *,
    is_head_new: bool = False,
    is_frozen: bool | None = None,
) -> Detector:
    """Build the detector `config.model` in eval mode.

    Its backbone is dynamic unless `config.router` is none.

    Args:
        config: the configuration.
        classes: names of the labels.
        is_head_new: as for `load_detector`.
        is_frozen: as for `load_detector`.

    Raises:
        InputError: as for `load_detector` and `convert_backbone_`.
    """
    loaded = load_detector(
        config.model,
        config.num_classes or len(classes),
        checkpoint=config.checkpoint,
        weights="default" if config.pretrained else "random",
        input_size=config.input_size,
        max_size=config.max_size,
        is_head_new=is_head_new,
        is_frozen=is_frozen,
    )
    model: Any = loaded.model
    if config.router == "none":
        return Detector(model, None, classes, config, loaded.remarks, loaded.weights_origin)
    side = config.input_size or EXAMPLE_SIDE
    height, width = getattr(model.transform, "fixed_size", None) or (side, side)
    net = convert_backbone_(
        model,
        torch.zeros((1, 3, height, width)),
        **config.conversion,
    )
    return Detector(model, net, classes, config, loaded.remarks, loaded.weights_origin)


def is_detector_run(folder: str | Path) -> bool:
    """Whether `folder` is the run folder of a detector, finished or not."""
    try:
        keys = json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return (Path(folder) / WEIGHTS["detection"]).is_file()
    return isinstance(keys, dict) and keys.get("task") == "detection"


def open_detector(folder: str | Path, backbone: str | None = None) -> Detector:
    """Return the detector of a finished run, in eval mode.

    The checkpoint that the run started from is not needed.

    Args:
        folder: the run folder. It may come from anyone, so code that it names is not run.
        backbone: `package.module:function` if the run's model is one; imported and called.

    Raises:
        ArchiveError: there is no finished run of a detector in `folder`, or its files are damaged
            or do not fit each other.
        InputError: the run's model is code and `backbone` is not given, or the other way round; or
            as for `build_detector`.
    """
    file, keys = Path(folder) / WEIGHTS["detection"], Path(folder) / "config.json"
    try:
        with safetensors.safe_open(file, "pt") as opened:
            classes = json.loads((opened.metadata() or {})["classes"])
        state = safetensors.torch.load_file(file)
        overrides = json.loads(keys.read_bytes())
    except FileNotFoundError as error:
        raise ArchiveError(
            f"{folder} has no finished run of a detector: {Path(error.filename or file).name} is"
            " missing. Continue the run with the command that started it."
        ) from error
    except Exception as error:  # damaged files may raise anything
        raise ArchiveError(
            f"the run in {folder} is damaged: {type(error).__name__}: {str(error)[:200]}. Train it"
            " again."
        ) from error
    if not isinstance(overrides, dict) or not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        raise ArchiveError(
            f"the run in {folder} is damaged: its keys or classes are not valid. Train it again."
        )
    config = read_config(None, overrides | {"checkpoint": None, "pretrained": False})
    if is_registered(config.model) != (backbone is None):
        raise InputError(
            f"the model in {folder} is {config.model!r}, which is built by name; leave --backbone"
            " out."
            if backbone is not None
            else (
                f"the model in {folder} is built by code, {config.model!r}, which is run only where"
                f" you name it: --backbone {config.model}."
            )
        )
    config = config.model_copy(update={"model": backbone or config.model})
    detector = build_detector(config, tuple(classes), is_frozen=has_frozen_norms(state))
    try:
        detector.model.load_state_dict(state)
    except RuntimeError as error:
        raise ArchiveError(
            f"{file} does not fit {detector.config.model}:"
            f" {' '.join(str(error).split())[:300]}. Check whether its code has changed since."
        ) from error
    detector.model.eval()
    if detector.net is not None:
        note_weights_(detector.net, TRAINED)
    return replace(detector, weights_origin=TRAINED)
