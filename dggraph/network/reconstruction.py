"""Reconstruction of a network from an archive: trace, profile, lower, load, check.

Code that an archive names is never run. The backbone comes from a closed registry or from the
caller.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dggraph.compiler.fingerprints import fingerprint, qualified_name
from dggraph.compiler.lowered import plain_owner
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow
from dggraph.compiler.static_graph import find_adds
from dggraph.compiler.tracing import Trace, trace, trace_eval
from dggraph.errors import ArchiveError, DggraphError, InputError, TraceError
from dggraph.graph.ir import DynamicGraph
from dggraph.models.registry import build_trusted, is_registered
from dggraph.network.assembly import assemble
from dggraph.network.blueprint import Blueprint
from dggraph.network.manifest import (
    WEIGHTS,
    Manifest,
    MethodManifest,
    refuse_unknown_names,
)
from dggraph.network.network import DynamicNetwork
from dggraph.network.report import note_checks
from dggraph.network.self_checks import check_loaded_
from dggraph.ops.gating import find_gate
from dggraph.ops.routing import find_router
from dggraph.system.tensor_memory import TensorMemoryError, at_most_bytes

SPARE_BYTES = 64 * 1024 * 1024


def lower_again(
    folder: Path,
    backbone: nn.Module,
    graph: DynamicGraph,
    blueprint: Blueprint,
    state: dict[str, Tensor],
) -> DynamicNetwork:
    """Trace, lower and load as in the conversion, in its dtype, and check against the backbone.

    Raises:
        ArchiveError: The backbone has another structure, or the network differs from it.
    """
    classes = {qualified_name(type(module)): type(module) for module in backbone.modules()}
    missing = [name for name in blueprint.leaves if name not in classes]
    example = torch.zeros((1, *blueprint.input_shape), dtype=getattr(torch, blueprint.dtype))
    traced = (
        None
        if missing
        else _traced_again(
            backbone, [classes[name] for name in blueprint.leaves], example, blueprint
        )
    )
    if traced is None:
        why = f"it has no {missing[0]}" if missing else "the traces differ"
        raise ArchiveError(
            f"{folder} was made from another structure than {type(backbone).__name__} has here:"
            f" {why}. Use the model and the versions of torch, torchvision and timm that it was"
            " converted with."
        )
    try:
        flow = Flow(traced, profile(traced.module, traced.graph, example))
        refuse_unknown_names(folder, blueprint.found, flow.by_name)
        adds = find_adds(flow, blueprint.found)
        with at_most_bytes(affordable_bytes(state)):
            net = assemble(flow, adds, graph=graph, blueprint=blueprint, threshold=0.5)
    except ArchiveError:
        raise
    except (
        DggraphError,
        ValueError,
        StopIteration,
        KeyError,
        IndexError,
        RuntimeError,
        TensorMemoryError,
    ) as error:
        raise ArchiveError(
            f"{folder}: graph.json and the manifest do not describe one network: {error}."
        ) from error
    refuse_other_kinds(folder, net.lowered, state)
    try:
        net.lowered.load_state_dict(state, strict=True)
        owner = plain_owner(backbone)  # whose keys are not of the backbone's own making
        owner.load_state_dict({key: state[key] for key in owner.state_dict()})
    except (RuntimeError, KeyError) as error:
        raise ArchiveError(
            f"{folder / WEIGHTS} does not fit the network:"
            f" {str(error).splitlines()[-1].strip()[:300]}"
        ) from error
    try:
        difference = check_loaded_(net, backbone, example)
    except DggraphError as error:
        raise ArchiveError(f"{folder} does not describe its backbone: {error}") from error
    net.report = note_checks(net.report, net.plan, max_difference=difference)
    return net


def affordable_bytes(state: Mapping[str, Tensor]) -> int:
    """Return how many bytes of tensors the network with the weights `state` may take to build.

    A few kilobytes can name a backbone of many gigabytes, or a layer of that size.
    """
    return SPARE_BYTES + 4 * sum(tensor.nbytes for tensor in state.values())


def refuse_other_kinds(folder: Path, lowered: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ArchiveError if a tensor in `state` is whole, real or complex and not so in `lowered`.

    Copying would convert it.
    """
    for key, tensor in lowered.state_dict().items():
        if key in state and _kind(state[key]) != _kind(tensor):
            raise ArchiveError(
                f"{folder / WEIGHTS} holds {key} as {state[key].dtype}, and the network has"
                f" {tensor.dtype} there. It was changed after it was written; copy it again."
            )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def rebuild_backbone(
    folder: Path, manifest: Manifest | MethodManifest, state: Mapping[str, Tensor]
) -> nn.Module:
    """Build the backbone that `manifest` names, with random weights.

    Raises:
        ArchiveError: It names no backbone, or one that is not registered, cannot be built, or is
            much larger than the weights in the archive.
    """
    if manifest.source is None:
        raise ArchiveError(
            f"{folder} was converted from a bare module. Pass it with load(folder, model=...), or"
            " on the command line with --backbone package.module:function."
        )
    try:
        if not is_registered(manifest.source):
            raise InputError(
                f"{manifest.source!r} is not in a registry, and code that an archive names is never"
                " run."
            )
        with at_most_bytes(affordable_bytes(state)):
            return build_trusted(
                manifest.source, num_classes=manifest.num_classes, image_size=manifest.image_size
            )
    except (InputError, TypeError, TensorMemoryError) as error:
        raise ArchiveError(f"{folder} cannot be rebuilt: {error}") from error


def refuse_unregistered(folder: Path, blueprint: Blueprint) -> None:
    """Raise ArchiveError if the router or the gate of `blueprint` is not registered."""
    parts: tuple[tuple[str, str, Callable[[str], object]], ...] = (
        ("router", blueprint.router, find_router),
        ("gate", blueprint.gate, find_gate),
    )
    for what, text, find in parts:
        try:
            find(text)
        except InputError as error:
            raise ArchiveError(
                f"{folder} needs the {what} {text!r}. Register it before loading."
            ) from error


def _traced_again(
    backbone: nn.Module, leaves: Sequence[type[nn.Module]], example: Tensor, blueprint: Blueprint
) -> Trace | None:
    """Return the trace with the fingerprint of `blueprint`, or None.

    Older archives have the fingerprint of a trace in eval mode only, or of one without an example.
    """
    for again, shown in ((trace, example), (trace_eval, example), (trace_eval, None)):
        try:
            traced = again(backbone, leaves, shown, whole=blueprint.whole)
        except TraceError:
            continue
        if fingerprint(traced.graph) == blueprint.fingerprint:
            return traced
    return None
