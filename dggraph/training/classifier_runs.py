"""Trained classifiers, read back from a run folder: from its archive or its last checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dggraph.baselines.archive import load, stored_classes
from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.registry import make_baseline
from dggraph.errors import ArchiveError, InputError
from dggraph.models.fewer_blocks import without_blocks
from dggraph.models.origins import TRAINED
from dggraph.models.registry import is_registered, load_model, takes_num_classes
from dggraph.network.conversion import convert
from dggraph.network.gate_constraints import decide_blocks_, pin_open_, release_
from dggraph.network.manifest import MANIFEST
from dggraph.network.network import DynamicNetwork
from dggraph.network.reconstruction import affordable_bytes
from dggraph.network.standin import note_weights_
from dggraph.system.tensor_memory import TensorMemoryError, at_most_bytes
from dggraph.training.checkpoint import list_checkpoints, load_checkpoint
from dggraph.training.config import TrainConfig, configured, read_config
from dggraph.training.runs import ARCHIVE, CHECKPOINTS, WEIGHTS


def is_classifier_run(folder: str | Path) -> bool:
    """Whether `folder` is the run folder of a classifier, finished or not."""
    return (
        not (Path(folder) / MANIFEST).is_file()
        and _keys(Path(folder)).get("task", "detection") == "classification"
    )


def run_config(folder: str | Path) -> TrainConfig:
    """Return the configuration of the run in `folder`, without its initial weights.

    Raises:
        InputError: the folder has no valid configuration.
    """
    return read_config(None, _keys(Path(folder)) | {"checkpoint": None, "pretrained": False})


def open_classifier(
    folder: str | Path, backbone: str | None = None
) -> tuple[DynamicNetwork | BaselineNetwork, str]:
    """Return the network of a run, in eval mode; a trained static backbone is converted.

    Args:
        folder: the run folder. It may come from anyone, so code that it names is not run.
        backbone: `package.module:function` if the run's model is one; imported and called.

    Returns:
        The network, and a sentence if the run is not finished, else an empty string.

    Raises:
        ArchiveError: the run has neither a network nor a checkpoint, or they are damaged or belong
            to another model.
        InputError: the run's model is code and `backbone` is not given, or the other way round.
    """
    folder = Path(folder)
    config = run_config(folder)
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
    archive = folder / ARCHIVE
    if (archive / MANIFEST).is_file():
        if backbone is None:
            return load(archive), ""
        return load(archive, load_model(backbone, num_classes=stored_classes(archive)).model), ""
    if (folder / WEIGHTS["classification"]).is_file():
        tensors, classes = _read_static(folder / WEIGHTS["classification"])
        return _built(config, backbone, folder, tensors, classes), ""
    checkpoints = list_checkpoints(folder / CHECKPOINTS)
    if not checkpoints:
        raise ArchiveError(
            f"the run in {folder} has no checkpoint yet, so there is no network. Continue it with"
            " the command that started it."
        )
    found = load_checkpoint(checkpoints[-1])
    if "data" not in found.state:
        raise ArchiveError(
            f"the run in {folder} is of an older version that did not store the classes. Finish it"
            " with the command that started it."
        )
    tensors = found.tensors.get("model", {})
    if "average" in found.tensors:
        # the threshold is scheduled, not learned, so its average would lag behind
        prefix, now = "module.", tensors
        averaged = {
            key.removeprefix(prefix): value
            for key, value in found.tensors["average"].items()
            if key.startswith(prefix)
        }
        tensors = {
            key: now[key] if key.endswith((".threshold", ".temperature")) else value
            for key, value in averaged.items()
        }
    try:
        classes = tuple(str(name) for name in found.state["data"]["classes"])
    except (KeyError, TypeError) as error:
        raise ArchiveError(
            f"the run in {folder} is damaged: its state names no classes. Train it again."
        ) from error
    net = _built(config, backbone, folder, tensors, classes)
    return net, f"the run in {folder} is not finished: this is its network after step {found.step}"


def _built(
    config: TrainConfig,
    backbone: str | None,
    folder: Path,
    tensors: dict[str, Tensor],
    classes: tuple[str, ...],
) -> DynamicNetwork | BaselineNetwork:
    name = backbone or config.model
    # distillation learns the teacher's outputs, which the data's classes do not name
    classes = classes if config.objective == "labels" else ()
    number = config.num_classes or (len(classes) or None if takes_num_classes(name) else None)
    try:
        with at_most_bytes(affordable_bytes(tensors)):
            loaded = load_model(name, num_classes=number, input_size=config.input_size)
    except TensorMemoryError as error:
        raise ArchiveError(
            f"{name} is much larger than the weights in {folder}: {error}. They are another's."
        ) from error
    if config.without:
        loaded = replace(loaded, model=without_blocks(loaded.model, config.removed_blocks))
    if loaded.preprocess is None:
        raise InputError(
            f"neither {name} nor the run in {folder} says what images the model takes. Train it"
            " again with input_size."
        )
    preprocess = configured(loaded.preprocess, config)
    example = torch.zeros((1, *preprocess.input_size))
    net: DynamicNetwork | BaselineNetwork
    try:
        if config.has_method:
            net = make_baseline(config.method, loaded, example)
            net.load_state_dict(tensors)
        elif config.router == "none":
            loaded.model.load_state_dict(tensors)
            net = convert(loaded, example)
        else:
            net = dynamic = convert(loaded, example, **config.conversion)
            (decide_blocks_ if config.decide == "blocks" else pin_open_)(dynamic, _pinned(folder))
            net.load_state_dict(tensors)
            release_(dynamic)
    except RuntimeError as error:
        raise ArchiveError(
            f"the weights in {folder} do not fit {name}: {' '.join(str(error).split())[:300]}."
            " Check whether its code has changed since."
        ) from error
    net.labels, net.preprocess = classes or loaded.labels, preprocess
    note_weights_(net, TRAINED)
    if config.without:  # by its name alone an archive would build the blocks again
        net.source = None
    return net.eval()


def _read_static(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        with safetensors.safe_open(file, "pt") as opened:
            classes = json.loads((opened.metadata() or {})["classes"])
        return safetensors.torch.load_file(file), tuple(str(name) for name in classes)
    except Exception as error:  # damaged files may raise anything
        raise ArchiveError(
            f"{file} is damaged: {type(error).__name__}: {str(error)[:200]}. Train it again."
        ) from error


def _pinned(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(json.loads((folder / "sensitivity.json").read_bytes())["pinned"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(
            f"{folder / 'sensitivity.json'} is damaged, so it is unknown which blocks are pinned."
            " Train it again."
        ) from error


def _keys(folder: Path) -> dict[str, Any]:
    try:
        keys = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return keys if isinstance(keys, dict) else {}
