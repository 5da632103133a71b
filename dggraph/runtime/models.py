"""MODEL names: torchvision's classifiers, `timm:NAME`, and `package.module:function` for a user's own."""

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from dggraph.errors import InputError, MissingExtraError
from dggraph.runtime.backbones import NAMES as SMALL_NAMES
from dggraph.runtime.backbones import build_small
from dggraph.runtime.preprocessing import Preprocess, preprocess_of

IMAGENET_CLASSES = 1000
# These two take seconds to draw initial weights that a checkpoint or training replaces.
_LAZY_INIT = {"googlenet", "inception_v3"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backbone with what is known of it."""

    model: nn.Module
    source: str
    """The MODEL name."""
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None


def model_names() -> tuple[str, ...]:
    """Names that can be built here: torchvision's classifiers, some of our own, and timm's where it is installed."""
    names = (*torchvision.models.list_models(module=torchvision.models), *SMALL_NAMES)
    try:
        import timm
    except ImportError:
        return names
    return (*names, *(f"timm:{name}" for name in timm.list_models()))


def is_registered(name: str) -> bool:
    """True for names that `build_trusted` may know; `package.module:function` is code, and only a caller may run code."""
    return ":" not in name or name.startswith(("timm:", "dggraph:"))


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    input_size: int | None = None,
) -> LoadedModel:
    """Build the backbone called `name`, in eval mode.

    Args:
        name: `resnet50` (torchvision), `timm:regnety_008`, or `package.module:function`, which is imported and called.
        num_classes: outputs of the classifier; the builder's default where None.
        checkpoint: a state dict, `.safetensors` or torch's format (read with `weights_only=True`).
        input_size: side of the square input in pixels, where it is not the usual one.

    Raises:
        InputError: no such model, or a checkpoint that does not fit.
        MissingExtraError: a timm name without timm.
    """
    model = build_trusted(name, num_classes=num_classes) if is_registered(name) else _call(name, num_classes)
    if checkpoint is not None:
        _load_checkpoint(model, checkpoint)
    size = _input_size(model, name, input_size)
    preprocess = preprocess_of(model, size) if size is not None else None
    labels = _imagenet_labels() if _is_imagenet(name) and num_classes in (None, IMAGENET_CLASSES) else None
    return LoadedModel(model.eval(), name, preprocess, labels)


def build_trusted(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Build from a closed registry (torchvision, timm or our own), never from code that `name` points at.

    Raises:
        InputError: the name is in neither registry.
    """
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if name.startswith("dggraph:"):
        return build_small(name, **options)
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError(f"{name} needs timm: pip install 'dggraph[timm]'.") from error
        if not timm.is_model(name.removeprefix("timm:")):
            raise _unknown(name, tuple(f"timm:{known}" for known in timm.list_models()))
        model: nn.Module = timm.create_model(name.removeprefix("timm:"), pretrained=False, **options)
        return model
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise _unknown(name, tuple(names))
    if name in _LAZY_INIT:
        options["init_weights"] = False
    built: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return built


def _unknown(name: str, known: tuple[str, ...]) -> InputError:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else "`dggraph models` lists them."
    return InputError(f"there is no model {name!r}. {hint}")


def _call(name: str, num_classes: int | None) -> nn.Module:
    module_name, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        builder = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import {name!r}: {error}. Write package.module:function, importable from here.") from error
    model = builder() if num_classes is None else builder(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} returned {type(model).__name__}, not an nn.Module.")
    return model


def _load_checkpoint(model: nn.Module, checkpoint: str | os.PathLike[str]) -> None:
    file = os.fspath(checkpoint)
    try:
        loaded = safetensors.torch.load_file(file) if file.endswith(".safetensors") else torch.load(file, "cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {file!r}.") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file!r} is no checkpoint that can be read without running code: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{file!r} holds no state dict of tensors.")
    state = {str(key).removeprefix("module."): value for key, value in loaded.items()}
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    misfits = [
        f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}" for k, v in expected.items() if k in state and state[k].shape != v.shape
    ]
    if missing or unexpected or misfits:
        raise InputError(
            f"{file!r} does not fit {type(model).__name__}: missing {missing[:3]}, unexpected {unexpected[:3]}, other shapes {misfits[:3]}. "
            "Is it this model's, with this --num-classes?"
        )
    model.load_state_dict(state)


def _input_size(model: nn.Module, name: str, side: int | None) -> tuple[int, int, int] | None:
    if side is not None:
        return 3, side, side
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        channels, height, width = config["input_size"]
        return channels, height, width
    if type(model).__module__.startswith("torchvision."):
        side = 299 if name == "inception_v3" else int(getattr(model, "image_size", 224))
        return 3, side, side
    return None


def _is_imagenet(name: str) -> bool:
    return is_registered(name) and not name.startswith("dggraph:")


def _imagenet_labels() -> tuple[str, ...]:
    return tuple(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
