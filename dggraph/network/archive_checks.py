"""Checks before saving: unsupported weights, wrong labels, a name that builds another backbone."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from dggraph.compiler.contexts import called_modules
from dggraph.compiler.copying import computed_weights
from dggraph.compiler.fingerprints import qualified_name
from dggraph.compiler.lowered import ROUTING, LoweredModule, routing_name
from dggraph.errors import ArchiveError, InputError
from dggraph.models.registry import build_shapes
from dggraph.network.network import DynamicNetwork
from dggraph.network.snapshot import Outline, outline_of


def refuse_unkept(lowered: nn.Module) -> None:
    """Raise InputError for the first weight that safetensors or `load` could not restore."""
    for name, hook, way_out in computed_weights(lowered):
        raise InputError(
            f"{name} is computed from other tensors before each call ({hook}), which `load` would"
            f" not do. Before saving, {way_out}."
        )
    for key, value in lowered.state_dict().items():
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


def refuse_other_routers(net: DynamicNetwork) -> None:
    """Raise InputError if a router or a gate is not what conversion built, as `load` will."""
    for key, then, now in changed_additions(net.lowered, net.converted.outline):
        raise InputError(
            f"{key} is {now} and was {then} at conversion. `load` builds routers and gates anew"
            " from their names, so it could not read this archive. Merge adapters first (PEFT:"
            " merge_and_unload()); for routers of your own use dggraph.register_router, and"
            " convert with that name."
        )


def changed_additions(lowered: nn.Module, outline: Outline) -> Iterator[tuple[str, object, object]]:
    """Yield each module and tensor that was added to the backbone and is another one now.

    Args:
        lowered: The network as it is.
        outline: The structure that it was built with.

    Yields:
        The name, and the class or shape then and now.
    """
    then, now = (
        {key: what for key, what in known if key.startswith(ROUTING)}
        for known in (outline, outline_of(lowered))
    )
    for key in now | then:
        if now.get(key) != then.get(key):
            yield key, then.get(key, "not there"), now.get(key, "gone")


def replaced_modules(lowered: LoweredModule, outline: Outline) -> set[str]:
    """Return the paths of modules that took another's place and that a trace would enter.

    The network calls them as a whole, and loading must trace their backbone in this way.

    Args:
        lowered: The network as it is.
        outline: The structure that it was built with.
    """
    then, leaves = dict(outline), fx.Tracer()
    called = {path: lowered.get_submodule(path) for path in called_modules(lowered.graph.nodes)}
    return {
        path
        for path, module in called.items()
        if qualified_name(type(module)) != then.get(path)
        and not leaves.is_leaf_module(module, path)
    }


def refuse_other_backbone(net: DynamicNetwork) -> None:
    """Raise ArchiveError if the name of `net` would build a backbone with other weights."""
    known = net.converted
    if (known.source, known.source_options) == (net.source, dict(net.source_options)) and (
        known.holds_of(net.lowered)
    ):
        return
    routers = tuple(f"{routing_name(stage)}." for stage in net.graph.stages)
    refuse_other_shapes(str(net.source), net.source_options, net.lowered, routers)


def refuse_other_shapes(
    source: str, source_options: Mapping[str, int], lowered: nn.Module, added: tuple[str, ...]
) -> None:
    """Raise ArchiveError if `source` would build a backbone with other weights than `lowered` has.

    `added` are the prefixes of keys that the backbone does not have.
    """
    options = {
        key: source_options[key] for key in ("num_classes", "image_size") if key in source_options
    }
    shapes = {key: tuple(value.shape) for key, value in build_shapes(source, options).items()}
    held = {
        key: tuple(value.shape)
        for key, value in lowered.state_dict().items()
        if not key.startswith(added)
    }
    for key in sorted(shapes.keys() | held.keys()):
        if shapes.get(key) != held.get(key):
            raise ArchiveError(
                f"{source!r} with {dict(source_options) or 'no options'} rebuilds {key} as"
                f" {shapes.get(key)}, but the network holds {held.get(key)}, so the archive could"
                " not be loaded. Set how it was built, for example net.source_options ="
                " {'num_classes': 10}, or set net.source = None and pass the backbone to load."
            )


def checked_labels(names: Sequence[str] | None, num_outputs: int | None) -> list[str] | None:
    """Return the class names to write, or None; raise InputError if they do not fit the network.

    Args:
        names: The names, or None.
        num_outputs: Columns of the network's output (B, outputs), or None if it has another form.
    """
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
    if num_outputs is not None and num_outputs != len(names):
        raise InputError(
            f"there are {len(names)} labels for {num_outputs} outputs. Give one name per output,"
            " or set net.labels = None."
        )
    return list(names)


def num_outputs_of(net: DynamicNetwork) -> int | None:
    """Return the number of outputs, or None if the output is not (B, outputs).

    It was recorded at conversion. If modules were replaced since, a copy of the network is run.
    """
    if net.converted.holds_of(net.lowered):
        return net.converted.num_outputs
    return run_for_outputs(net.lowered, net.blueprint.input_shape)


def run_for_outputs(lowered: nn.Module, input_shape: tuple[int, ...]) -> int | None:
    """Return the columns of the output (B, columns) of a copy of `lowered`; None if none."""
    twin = copy.deepcopy(lowered).eval()
    parameter = next(twin.parameters(), torch.zeros((), device="cpu"))
    with torch.no_grad():
        output, _ = twin(
            torch.zeros((1, *input_shape), dtype=parameter.dtype, device=parameter.device)
        )
    return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
