"""Checks of the arguments of `convert`: the module, the options and the example input."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dggraph.compiler.lowered import LoweredModule
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, input_size_of
from dggraph.models.registry import LoadedModel, load_model
from dggraph.network.network import DynamicNetwork
from dggraph.ops.gating import find_gate
from dggraph.ops.granularity import read_granularity
from dggraph.ops.routing import PIXEL_ROUTERS, find_router
from dggraph.system.devices import first_weight


class Given(NamedTuple):
    """What a caller gave to convert."""

    loaded: nn.Module | LoadedModel
    backbone: nn.Module
    """The bare module; the caller's own, not a copy."""
    example: Tensor


def read_given(model: nn.Module | str | LoadedModel, example_input: Tensor | None) -> Given:
    """Load `model` if it is a name, and find its example input, see `convert`.

    Raises:
        InputError: As for `plain_backbone` and `example_of`, or no model has this name.
    """
    loaded = load_model(model) if isinstance(model, str) else model
    backbone = plain_backbone(loaded.model if isinstance(loaded, LoadedModel) else loaded)
    preprocess = loaded.preprocess if isinstance(loaded, LoadedModel) else None
    return Given(loaded, backbone, example_of(backbone, example_input, preprocess))


def plain_backbone(model: object) -> nn.Module:
    """Return `model` without the wrappers of `torch.compile` and of data parallelism.

    Raises:
        InputError: It is not a module, is already converted, has tensors on the meta device, or
            has lazy parameters.
    """
    model = (
        getattr(model, "_orig_mod", model) if type(model).__name__ == "OptimizedModule" else model
    )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if isinstance(model, DynamicNetwork | LoweredModule):
        raise InputError(
            "this network is already converted. To wire it differently, convert its backbone again."
        )
    if not isinstance(model, nn.Module):
        given, hint = repr(model)[:80], ""
        if isinstance(model, type):
            given, hint = (
                f"the class {model.__name__}",
                f" Call it: convert({model.__name__}(...)).",
            )
        elif isinstance(model, Mapping):
            given = f"a mapping ({type(model).__name__})"
            hint = (
                " A state dict holds weights only: build the model, model.load_state_dict(...), and"
                " convert that."
            )
        raise InputError(f"convert takes an nn.Module or a MODEL name, not {given}.{hint}")
    is_detection = any(
        kind.__module__.startswith("torchvision.models.detection") for kind in type(model).__mro__
    )
    if is_detection and hasattr(model, "backbone"):
        raise InputError(
            f"{type(model).__name__} is a detector and takes a list of images. Convert the backbone"
            " inside it, in place: dggraph.convert_backbone_(detector)."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"{name!r} is on the meta device and has no values, so nothing can be compared with"
                " the backbone. Build the backbone outside torch.device('meta'), or call"
                " model.to_empty(device='cpu') and load its weights, then convert it."
            )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise InputError(
            f"{lazy[0]!r} is lazy: its shape is not known yet. Run the backbone once on an input,"
            " then convert it."
        )
    return model


def check_options(
    *,
    router: str,
    gate: str,
    residual: str,
    init: str,
    granularity: object,
    aggregation: str,
    threshold: object,
    leaves: object,
) -> None:
    """Check the options of `convert`.

    Raises:
        InputError: An option has an unknown value; the error names it.
    """
    (scope, _), kind = find_router(router), find_gate(gate)
    if kind.reach == "column" and scope == "node":
        raise InputError(
            f"gate={gate!r} weighs all edges into a node together, and router={router!r} decides"
            ' them one source at a time. Use router="stage" or router="content".'
        )
    if read_granularity(granularity) == "pixel" and router not in PIXEL_ROUTERS:
        raise InputError(
            f"router={router!r} pools its features, and granularity='pixel' needs a router that"
            f" decides for every position. Use one of {', '.join(PIXEL_ROUTERS)}, without options."
        )
    if scope == "column" and read_granularity(granularity) != "edge":
        raise InputError(
            f"router={router!r} compares the pooled features of nodes, so edges have one weight."
            f" Use granularity='edge', or router='node' with granularity={granularity!r}."
        )
    if aggregation == "additive" and read_granularity(granularity) != "edge":
        raise InputError(
            f"aggregation='additive' goes with one weight an edge, not granularity={granularity!r}."
            " Leave one of them out."
        )
    choices = {
        "residual": (residual, ("auto", "keep", "lift")),
        "init": (init, ("preserve", "scratch")),
        "aggregation": (aggregation, ("sum", "additive")),
    }
    for option, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"{option}={value!r} is not one of {', '.join(known)}.")
    if (
        isinstance(leaves, str)
        or not isinstance(leaves, Collection)
        or not all(isinstance(leaf, type) for leaf in leaves)
    ):
        raise InputError(
            f"leaves={leaves!r} is not a collection of module classes; write leaves=(MyBlock,)."
        )
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise InputError(f"threshold={threshold!r} is not a number; use 0.5.")
    if not 0 <= threshold < 1:
        raise InputError(
            f"threshold={threshold} is outside [0, 1); static edges weigh 1 and must stay open, use"
            " 0.5."
        )
    kind.refuse_threshold(threshold)


def example_of(model: nn.Module, example: Tensor | None, preprocess: Preprocess | None) -> Tensor:
    """Return `example`, or zeros of the known input size, in the model's dtype on its device.

    Args:
        model: The backbone.
        example: (1 or more, C, H, W), or None for zeros.
        preprocess: Has the input size; if None, the input size that the model declares is used.

    Raises:
        InputError: It is not a batch of images, or no input size is known.
    """
    weight = first_weight(model)
    if example is None:
        size = preprocess.input_size if preprocess is not None else input_size_of(model)
        if size is None:
            raise InputError(
                f"{type(model).__name__} does not declare its input size. Pass `example_input`"
                " (--input-size), a float tensor (1, C, H, W) of the size you will use."
            )
        return torch.zeros((1, *size), dtype=weight.dtype, device=weight.device)
    if not isinstance(example, Tensor):
        raise InputError(
            f"example_input is {type(example).__name__}; an image batch is a float tensor (B, C,"
            " H, W)."
        )
    if example.is_meta:
        raise InputError(
            "example_input is on the meta device and has no values. Pass a tensor on the device of"
            " the backbone, for example zeros."
        )
    if example.ndim == 5:
        raise InputError(
            f"example_input has shape {tuple(example.shape)}: clips (B, C, T, H, W). convert takes"
            " backbones of images (B, C, H, W). Convert the backbone inside your model, and call it"
            " with frames folded into the batch, clips.transpose(1, 2).flatten(0, 1)."
        )
    if example.ndim != 4 or not example.is_floating_point() or example.shape[0] < 1:
        raise InputError(
            f"example_input has shape {tuple(example.shape)} and dtype {example.dtype}; an image"
            " batch is a float tensor (B, C, H, W)."
        )
    return example.detach().to(weight)
