"""Model names: torchvision's classifiers, `timm:NAME`, and `package.module:function`."""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from dggraph.errors import InputError, MissingExtraError, UnknownModelError
from dggraph.models.default_weights import fetch_default
from dggraph.models.origins import GIVEN, RANDOM, checkpoint_origin
from dggraph.models.preprocessing import Preprocess, input_size_of, num_channels_of, preprocess_of
from dggraph.models.small_mobilenet import NAMES as SMALL_MOBILENETS
from dggraph.models.small_mobilenet import build_small_mobilenet
from dggraph.models.small_resnet import NAMES as SMALL_RESNETS
from dggraph.models.small_resnet import build_small
from dggraph.models.weights import Weights, fitted, load_checkpoint_, read_checkpoint

IMAGENET_CLASSES = 1000
# These two take seconds to draw initial weights that a checkpoint or training replaces.
_LAZY_INIT = {"googlenet", "inception_v3"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backbone and the facts that its name gives."""

    model: nn.Module
    source: str
    """The name of the model."""
    options: dict[str, int]
    """The arguments of its builder: `num_classes`, `image_size`."""
    preprocess: Preprocess | None
    labels: tuple[str, ...] | None
    remarks: tuple[str, ...]
    """One sentence per choice that its checkpoint left open, and how it was made."""
    weights_origin: str = GIVEN
    """Where its weights come from, see `origins`."""


def model_names() -> tuple[str, ...]:
    """Return the names that can be built here: torchvision's, dggraph's, and any of timm's."""
    small = (*SMALL_RESNETS, *SMALL_MOBILENETS)
    names = (*torchvision.models.list_models(module=torchvision.models), *small)
    try:
        import timm
    except ImportError:
        return names
    return (*names, *(f"timm:{name}" for name in timm.list_models()))


def is_registered(name: str | None) -> bool:
    """Whether `build_trusted` may build `name`.

    `package.module:function` is code, and only a caller may run code.
    """
    return name is not None and (":" not in name or name.startswith(("timm:", "dggraph:")))


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    input_size: int | None = None,
    weights: Literal["random", "default"] = "random",
) -> LoadedModel:
    """Build the backbone called `name`, in eval mode.

    Args:
        name: `resnet50` (torchvision), `timm:regnety_008`, or `package.module:function`, which is
            imported and called.
        num_classes: outputs of the classifier; None takes the builder's default.
        checkpoint: a state dict, `.safetensors` or torch's format (read with `weights_only=True`).
        input_size: side of the square input in pixels; None takes the model's default.
        weights: what a model without a checkpoint starts with: `random`, as its builder draws them,
            or `default`, what torchvision or timm publish. With another number of classes, what
            depends on that number stays as it was built.

    Raises:
        InputError: there is no model of that name, the checkpoint does not fit, the function fails,
            or nobody has published default weights.
        DownloadError: the default weights cannot be fetched.
        MissingExtraError: a timm name without timm.
    """
    if weights == "default" and checkpoint is not None:
        raise InputError("a checkpoint and default weights are two answers: choose one of them.")
    options: dict[str, int] = {} if num_classes is None else {"num_classes": num_classes}
    model = build_trusted(name, **options) if is_registered(name) else _call(name, options)
    default = fetch_default(name) if weights == "default" else None
    known = default.preprocess if default is not None else None
    if known is not None:
        input_size = known.input_size[1] if input_size is None else input_size
    if (
        input_size is not None
        and is_registered(name)
        and (sized := _sized(name, model, options, input_size)) is not None
    ):
        model, options = sized, options | {"image_size": input_size}
    origin = RANDOM if is_registered(name) else GIVEN
    remarks: tuple[str, ...] = ()
    if checkpoint is not None:
        remarks = load_checkpoint_(model, read_checkpoint(checkpoint))
        origin = checkpoint_origin(checkpoint)
    if default is not None:
        remarks, origin = _fill_(model, name, options, default.weights), default.origin
    size = (
        input_size_of(model)
        if input_size is None
        else (num_channels_of(model), input_size, input_size)
    )
    preprocess = preprocess_of(model, size) if size is not None else None
    if known is not None and size is not None:
        preprocess = replace(known, input_size=size)
    labels = None
    if _is_imagenet(name) and num_classes in (None, IMAGENET_CLASSES):
        labels = _imagenet_labels()
    if default is not None and default.labels is not None and num_classes is None:
        labels = default.labels
    model.eval()
    return LoadedModel(model, name, options, preprocess, labels, remarks, origin)


def takes_num_classes(name: str) -> bool:
    """Whether the builder called `name` accepts `num_classes`.

    Raises:
        InputError: `package.module:function` cannot be imported.
    """
    if is_registered(name):
        return True
    try:
        parameters = inspect.signature(import_function(name)).parameters
    except (TypeError, ValueError):  # written in C
        return True
    return "num_classes" in parameters or any(
        one.kind is one.VAR_KEYWORD for one in parameters.values()
    )


def start_from_(loaded: LoadedModel, checkpoint: str | os.PathLike[str]) -> tuple[str, ...]:
    """Load a checkpoint that may have another number of classes, in place.

    Tensors whose shape depends on the number of classes keep their initial values.

    Args:
        loaded: the model, built with its `num_classes`.
        checkpoint: as for `load_model`.

    Returns:
        As `load_checkpoint_`.

    Raises:
        InputError: the checkpoint cannot be read, or another tensor does not fit.
    """
    return _fill_(loaded.model, loaded.source, loaded.options, read_checkpoint(checkpoint))


def _fill_(
    model: nn.Module, name: str, options: dict[str, int], weights: Weights
) -> tuple[str, ...]:
    """Load `weights`, but for what depends on the number of classes where that is another one."""
    expected = model.state_dict()
    tensors = fitted(weights, expected.keys()).tensors
    is_fitting = expected.keys() == tensors.keys() and all(
        tensors[key].shape == tensor.shape for key, tensor in expected.items()
    )
    return load_checkpoint_(
        model, weights, replaceable=() if is_fitting else _of_classes(model, name, options)
    )


def _of_classes(model: nn.Module, name: str, options: dict[str, int]) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
    if not takes_num_classes(name):
        return set()
    options = options | {"num_classes": options.get("num_classes", 16) + 1}
    with torch.random.fork_rng(devices=[]):
        other = (
            build_shapes(name, options)
            if is_registered(name)
            else _call(name, options).state_dict()
        )
    return {
        key
        for key, tensor in model.state_dict().items()
        if key in other and other[key].shape != tensor.shape
    }


def build_shapes(name: str, options: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the state dict that `build_trusted` would give, for its shapes.

    It is on the meta device where the builder supports that.
    """
    try:
        with torch.device("meta"):
            built = build_trusted(name, **options)
    except (RuntimeError, NotImplementedError):  # a builder that reads values of its tensors
        built = build_trusted(name, **options)
    return built.state_dict()


def build_trusted(
    name: str, *, num_classes: int | None = None, image_size: int | None = None
) -> nn.Module:
    """Build from a closed registry (torchvision, timm or dggraph), never from a user's code.

    Args:
        name: a registered name.
        num_classes: outputs of the classifier.
        image_size: side of the input, for models whose weights depend on it; other builders raise a
            TypeError.

    Raises:
        InputError: the name is not registered.
        MissingExtraError: a timm name without timm.
    """
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if image_size is not None:
        options["img_size" if name.startswith("timm:") else "image_size"] = image_size
    if name.startswith("dggraph:mobilenet"):
        return build_small_mobilenet(name, **options)
    if name.startswith("dggraph:"):
        return build_small(name, **options)
    if name.startswith("timm:"):
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError(f"{name} needs timm: pip install 'dggraph[timm]'.") from error
        if not timm.is_model(name.removeprefix("timm:")):
            raise unknown_model(name, tuple(f"timm:{known}" for known in timm.list_models()))
        model: nn.Module = timm.create_model(
            name.removeprefix("timm:"), pretrained=False, **options
        )
        return model
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise unknown_model(name, tuple(names))
    if name in _LAZY_INIT:
        options["init_weights"] = False
    built: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return built


def import_function(name: str) -> Any:
    """Return the function `package.module:function`; the current folder is searched too.

    Raises:
        InputError: it cannot be imported.
        MissingExtraError: its module needs a package that is not installed.
    """
    module_name, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), function)
        if not callable(found):
            raise TypeError(f"{type(found).__name__} is not a function")
        return found
    except ModuleNotFoundError as error:
        if error.name is None or f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"cannot import {name!r}: there is no module {error.name!r}. {_advice(name)}"
            ) from error
        raise MissingExtraError(
            f"{name} needs the package {error.name!r}, which is not installed. Install it in this"
            " environment."
        ) from error
    except Exception as error:  # a user's module may raise anything
        raise InputError(
            f"cannot import {name!r}: {_first_line(error)}. {_advice(name)}"
        ) from error


def _advice(name: str) -> str:
    module_name, _, function = name.partition(":")
    if module_name.endswith(".py"):  # a file's name where a module's is needed
        dotted = os.path.relpath(module_name.removesuffix(".py")).replace(os.sep, ".")
        if not dotted.startswith("."):
            return f"Write {dotted}:{function}: the name of a module, without .py."
    module = sys.modules.get(module_name)
    if module is not None and not hasattr(module, function):
        if close := difflib.get_close_matches(function, vars(module), n=1):
            return f"Did you mean {module_name}:{close[0]}?"
    return f"Write package.module:function, importable from {os.getcwd()}, or set PYTHONPATH."


def unknown_model(
    name: str, known: Sequence[str], listing: str = "`dggraph models` lists them."
) -> UnknownModelError:
    """Return the error for an unknown model name, with names that may be meant.

    Args:
        name: the name as given.
        known: names of which it may be a misspelling.
        listing: a sentence that says where all names are listed.
    """
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else listing
    if name in torchvision.models.list_models(module=torchvision.models.detection):
        hint = (
            "It is a detector: use `dggraph train --task detection`, `dggraph eval --dataset coco`,"
            " or `dggraph.convert_backbone_`."
        )
    elif f"timm:{name}" in model_names():
        hint = f"timm has it: write timm:{name}."
    elif name.endswith((".pth", ".pt", ".safetensors", ".ckpt", ".bin")):
        hint = (
            "It looks like a file of weights: give the name of their model, and the file with"
            " --checkpoint."
        )
    return UnknownModelError(f"there is no model {name!r}. {hint}")


def _call(name: str, options: dict[str, int]) -> nn.Module:
    builder = import_function(name)
    try:
        model = builder(**options)
    except Exception as error:
        raise InputError(
            f"{name} failed when it was called with {options or 'no arguments'}:"
            f" {_first_line(error)}. It must build the model from no arguments, or from num_classes"
            " (--num-classes) alone."
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name} returned {type(model).__name__}, not an nn.Module; it must return the model."
        )
    return model


def _sized(name: str, model: nn.Module, options: dict[str, int], side: int) -> nn.Module | None:
    """Return the model for images of `side` if that changes its weights (ViT, Swin), else None."""
    usual = input_size_of(model)
    if name.startswith("dggraph:") or usual is None or usual[1:] == (side, side):
        return None
    try:
        sized = build_trusted(name, **options, image_size=side)
    except (TypeError, ValueError):  # the builder does not accept `image_size`
        return None
    is_same = {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in sized.state_dict().items()
    }
    return None if is_same else sized


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _is_imagenet(name: str) -> bool:
    return is_registered(name) and not name.startswith("dggraph:")


def _imagenet_labels() -> tuple[str, ...]:
    return tuple(torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
