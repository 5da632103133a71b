"""Checks before saving: unsupported weights, wrong labels, a name that builds another backbone."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from dggraph.compiler.lowered import routing_name
from dggraph.errors import ArchiveError, InputError
from dggraph.models.registry import build_shapes
from dggraph.network.network import DynamicNetwork


def refuse_unkept(lowered: nn.Module) -> None:
    """Raise InputError for the first weight that safetensors or `load` could not restore."""
    for path, module in lowered.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                raise InputError(
                    f"{path}.{hook._tensor_name} is pruned by a mask that `load` would not find."
                    " Make it permanent before saving, the zeros stay:"
                    f" torch.nn.utils.prune.remove(module, {hook._tensor_name!r})."
                )
    for key, value in lowered.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            what = f"{type(value).__name__}, not a tensor (quantised layers pack their weights)"
        elif value.is_quantized or hasattr(value, "__tensor_flatten__"):
            what = f"{type(value).__name__} of {value.dtype}, packed or quantised"
        elif value.layout is not torch.strided:
            what = f"stored as {value.layout}"
        elif value.is_meta:
            what = "on the meta device and has no values"
        else:
            continue
        raise InputError(
            f"{key} is {what}, which an archive cannot keep. Save the network before it is"
            " quantised, sparsified or emptied, and do that again after loading."
        )


def refuse_other_backbone(net: DynamicNetwork) -> None:
    """Raise ArchiveError if the name of `net` would build a backbone with other weights."""
    known = net.converted
    if (known.source, known.source_options) == (net.source, dict(net.source_options)) and (
        known.holds_of(net.lowered)
    ):
        return
    options = {
        key: net.source_options[key]
        for key in ("num_classes", "image_size")
        if key in net.source_options
    }
    shapes = {
        key: tuple(value.shape) for key, value in build_shapes(str(net.source), options).items()
    }
    routers = tuple(f"{routing_name(stage)}." for stage in net.graph.stages)
    held = {
        key: tuple(value.shape)
        for key, value in net.lowered.state_dict().items()
        if not key.startswith(routers)
    }
    for key in sorted(shapes.keys() | held.keys()):
        if shapes.get(key) != held.get(key):
            raise ArchiveError(
                f"{net.source!r} with {dict(net.source_options) or 'no options'} rebuilds {key} as"
                f" {shapes.get(key)}, but the network holds {held.get(key)}, so the archive could"
                " not be loaded. Set how it was built, for example net.source_options ="
                " {'num_classes': 10}, or set net.source = None and pass the backbone to load."
            )


def checked_labels(net: DynamicNetwork, labels: Sequence[str] | None) -> list[str] | None:
    """Return the class names to write, or None; raise InputError if they do not fit the network."""
    names = net.labels if labels is None else labels
    if names is None:
        return None
    if (
        isinstance(names, str)
        or not isinstance(names, Sequence)
        or not all(isinstance(name, str) for name in names)
    ):
        raise InputError(f"labels={names!r} is not a list of class names; write ['cat', 'dog'].")
    strange = next((name for name in names if not _is_unicode(name)), None)
    if strange is not None:
        raise InputError(
            f"the label {strange!r} is not UTF-8, so an archive cannot hold it. Rename the class."
        )
    number = _num_outputs(net)
    if number is not None and number != len(names):
        raise InputError(
            f"there are {len(names)} labels for {number} outputs. Give one name per output,"
            " or set net.labels = None."
        )
    return list(names)


def _num_outputs(net: DynamicNetwork) -> int | None:
    """Return the number of outputs, or None if the output is not (B, outputs).

    It was recorded at conversion. If modules were replaced since, a copy of the network is run.
    """
    if net.converted.holds_of(net.lowered):
        return net.converted.num_outputs
    twin = copy.deepcopy(net.lowered).eval()
    parameter = next(twin.parameters(), torch.zeros((), device="cpu"))
    with torch.no_grad():
        output, _ = twin(
            torch.zeros(
                (1, *net.blueprint.input_shape), dtype=parameter.dtype, device=parameter.device
            )
        )
    return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
