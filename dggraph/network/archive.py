"""Archives: a converted network in a folder, without pickle.

`graph.json` (what may connect), `model.safetensors` (every weight) and `manifest.json` (written
last: a SHA-256 of each and of itself, the MODEL name, the trace's fingerprint, where blocks sit in
it, preprocessing, labels and budgets). Loading never runs code that an archive names: a backbone is
rebuilt from torchvision's or timm's registry, or the caller brings it, its trace must have the
stored fingerprint, and the loaded network must equal it as a converted one does.
"""

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from dggraph.compiler.copying import copy_model, stored_activations
from dggraph.compiler.fingerprints import fingerprint, qualified_name
from dggraph.compiler.lowered import plain_owner, routing_name
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow
from dggraph.compiler.static_graph import find_adds
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.compiler.tracing import Trace, trace, trace_eval
from dggraph.errors import ArchiveError, DggraphError, InputError, TraceError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.schema import from_json, to_json
from dggraph.models.preprocessing import Preprocess
from dggraph.models.registry import build_shapes, build_trusted, is_registered
from dggraph.network.assembly import assemble
from dggraph.network.blueprint import Blueprint
from dggraph.network.conversion_arguments import plain_backbone
from dggraph.network.inference import InferenceNetwork
from dggraph.network.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
    pack_blueprint,
    pack_budgets,
    pack_preprocess,
    read_manifest,
    refuse_unknown_names,
    seal,
    type_name,
    unpack_blueprint,
    unpack_budgets,
    unpack_preprocess,
)
from dggraph.network.network import DynamicNetwork
from dggraph.network.report import note_checks
from dggraph.network.skipping_checks import check_skipping_
from dggraph.network.static_checks import check_images, check_static
from dggraph.ops.gating import GATES
from dggraph.ops.routing import find_router
from dggraph.system.files import part_of, sha256_of, write_folder

GRAPH, WEIGHTS = "graph.json", "model.safetensors"


def save(
    net: DynamicNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write `net` to `folder`, all of it or nothing: a process killed at any moment leaves the old
    archive or the new one there.

    Args:
        net: a converted network.
        folder: must not exist, or be an archive, whose files are replaced; a link is followed.
        preprocess: how images become its input; by default what `net.preprocess` says.
        labels: class names; by default `net.labels`.

    Raises:
        InputError: `net` is not a converted network or one optimised for inference, or the labels
            do not fit it, or a weight is pruned, quantised or sparse: names it.
        ArchiveError: `folder` is something else, or cannot be written, or `net.source` would not
            rebuild this backbone; an archive that was there still loads.

    Example:
        >>> import dggraph
        >>> dggraph.save(dggraph.convert("dggraph:resnet20_8"), "archive")
        >>> dggraph.load("archive").source
        'dggraph:resnet20_8'
    """
    folder = Path(os.path.realpath(os.fsdecode(folder)))
    manifest, state = _packed(net, folder, preprocess, labels)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(
            folder,
            _parts(net.graph, state, manifest),
            scratch_prefix=f".{folder.name[:80]}.",
        )
    except OSError as error:
        raise ArchiveError(
            f"cannot write the archive {folder}: {error}. An archive that was there still loads."
        ) from error


def _parts(
    graph: DynamicGraph, state: dict[str, Tensor], manifest: Manifest
) -> Iterator[tuple[str, bytes]]:
    """The files of an archive, the manifest last, with the digests of the others."""
    digests = {}
    for name, content in (
        (GRAPH, to_json(graph).encode()),
        (WEIGHTS, safetensors.torch.save(state)),
    ):
        digests[name] = hashlib.sha256(content).hexdigest()
        yield name, content
    sealed = seal(manifest.model_copy(update={"sha256": digests}))
    yield MANIFEST, sealed.model_dump_json(indent=1).encode()


def refuse_unsavable(
    net: DynamicNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Find out before the work what `save` would refuse after it, all but what only writing shows.

    Raises:
        InputError: as for `save`.
        ArchiveError: as for `save`.
    """
    _packed(net, Path(os.path.realpath(os.fsdecode(folder))), preprocess, labels)


def _packed(
    net: DynamicNetwork, folder: Path, preprocess: Preprocess | None, labels: Sequence[str] | None
) -> tuple[Manifest, dict[str, Tensor]]:
    """The manifest, without digests, and the weights, once they are known to be such as can be read
    back.
    """
    if not isinstance(net, DynamicNetwork):
        raise InputError(
            f"save takes a converted network, not {type(net).__name__}; convert it first."
        )
    if isinstance(net, InferenceNetwork):
        raise InputError(
            "a network optimised for inference has folded norms, so no backbone fits it; save the"
            " one it was made from."
        )
    if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
        raise ArchiveError(
            f"{folder} exists and is not a dggraph archive, so it is not overwritten. Choose"
            " another folder."
        )
    _refuse_unkept(net.lowered)
    names = _labels(net, labels)
    state, tied = _untied(net.lowered)
    is_named = net.source is not None and is_registered(net.source)
    if is_named:
        _refuse_other_backbone(net, state)
    manifest = Manifest(
        format="dggraph",
        schema_version=SCHEMA_VERSION,
        source=net.source if is_named else None,
        num_classes=net.source_options.get("num_classes"),
        image_size=net.source_options.get("image_size"),
        **pack_blueprint(net.blueprint),
        tied=tied,
        dtypes={key: type_name(buffer) for key, buffer in _unsaved_floats(net.lowered)},
        frozen=[
            key for key, parameter in net.lowered.named_parameters() if not parameter.requires_grad
        ],
        preprocess=pack_preprocess(preprocess if preprocess is not None else net.preprocess),
        labels=names,
        budgets=pack_budgets(net.budgets),
        sha256={},
    )
    return manifest, state


def load(folder: str | os.PathLike[str], model: nn.Module | None = None) -> DynamicNetwork:
    """Read an archive.

    Args:
        folder: what `save` wrote.
        model: the backbone, for a network that was converted from a bare module. Only its structure
            is used; it is not changed.

    Returns:
        The network, in eval mode, on the CPU, with the data types it was saved with.

    Raises:
        ArchiveError: damaged, newer than this version, not the archive of this backbone, or not
            equal to it.

    Example:
        >>> import dggraph
        >>> dggraph.save(dggraph.convert("dggraph:resnet20_8"), "saved")
        >>> dggraph.load("saved").labels is None
        True
    """
    folder = Path(os.fsdecode(folder))
    manifest = read_manifest(folder)
    parts = {name: part_of(folder, name) for name in (GRAPH, WEIGHTS)}
    for name, file in parts.items():
        if not file.is_file() or sha256_of(file) != manifest.sha256.get(name):
            raise ArchiveError(
                f"{file} is missing or not what the manifest recorded; copy the archive again."
            )
    graph = from_json(parts[GRAPH].read_text(encoding="utf-8"))
    try:
        state = safetensors.torch.load_file(parts[WEIGHTS])
    except (safetensors.SafetensorError, OSError) as error:
        raise ArchiveError(
            f"{parts[WEIGHTS]} is not a readable safetensors file: {error}."
        ) from error
    state |= {key: state[twin] for key, twin in manifest.tied.items() if twin in state}
    blueprint = unpack_blueprint(manifest)
    _refuse_unregistered(folder, blueprint)
    with ordinary_surroundings(torch.device("cpu")):
        given = _rebuild(folder, manifest) if model is None else plain_backbone(model)
        backbone = copy_model(given).to("cpu")
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            if tensor.is_floating_point():  # Module.to would cut complex weights to their real part
                tensor.data = tensor.data.to(getattr(torch, blueprint.dtype))
        net = _lowered_again(folder, backbone, graph, blueprint, state)
    net.report = replace(net.report, detached=stored_activations(given))
    for key, tensor in net.lowered.state_dict(keep_vars=True).items():
        if tensor.dtype != state[key].dtype:
            tensor.data = state[key]
    for key, buffer in _unsaved_floats(net.lowered):
        buffer.data = buffer.data.to(getattr(torch, manifest.dtypes.get(key, blueprint.dtype)))
    for key, parameter in net.lowered.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(key not in manifest.frozen)
    options = {"num_classes": manifest.num_classes, "image_size": manifest.image_size}
    net.source, net.source_options = (
        manifest.source,
        {key: value for key, value in options.items() if value is not None},
    )
    if model is None:
        net.converted = replace(
            net.converted, source=net.source, source_options=dict(net.source_options)
        )
    net.labels = tuple(manifest.labels) if manifest.labels is not None else None
    net.preprocess = unpack_preprocess(manifest)
    net.budgets = unpack_budgets(manifest)
    return net


def _lowered_again(
    folder: Path,
    backbone: nn.Module,
    graph: DynamicGraph,
    blueprint: Blueprint,
    state: dict[str, Tensor],
) -> DynamicNetwork:
    """Trace, lower and fill as conversion did, in the type it did it in, and check that the result
    equals the backbone.
    """
    classes = {qualified_name(type(module)): type(module) for module in backbone.modules()}
    missing = [name for name in blueprint.leaves if name not in classes]
    example = torch.zeros((1, *blueprint.input_shape), dtype=getattr(torch, blueprint.dtype))
    traced = (
        None
        if missing
        else _traced_again(
            backbone, [classes[name] for name in blueprint.leaves], example, blueprint.fingerprint
        )
    )
    if traced is None:
        why = f"it has no {missing[0]}" if missing else "the traces differ"
        raise ArchiveError(
            f"{folder} was made from another structure than {type(backbone).__name__} has here:"
            f" {why}. Use the model, and the versions of torch, torchvision and timm, that it was"
            " converted with."
        )
    try:
        flow = Flow(traced, profile(traced.module, traced.graph, example))
        refuse_unknown_names(folder, blueprint.found, flow.by_name)
        adds = find_adds(flow, blueprint.found)
        net = assemble(flow, adds, graph=graph, blueprint=blueprint, threshold=0.5)
    except ArchiveError:
        raise
    except (DggraphError, ValueError, StopIteration, KeyError, IndexError, RuntimeError) as error:
        raise ArchiveError(
            f"{folder}: graph.json and the manifest do not describe one network: {error}."
        ) from error
    try:
        net.lowered.load_state_dict(state, strict=True)
        owner = plain_owner(backbone)  # whose keys are not of the backbone's own making
        owner.load_state_dict({key: state[key] for key in owner.state_dict()})
    except (RuntimeError, KeyError) as error:
        raise ArchiveError(
            f"{folder / WEIGHTS} does not fit the network: {str(error).splitlines()[-1].strip()}"
        ) from error
    try:
        backbone.eval()
        difference, _ = check_static(net, backbone, example)
        check_skipping_(net, check_images(net, backbone, example))
    except DggraphError as error:
        raise ArchiveError(f"{folder} does not describe its backbone: {error}") from error
    net.report = note_checks(net.report, net.plan, max_difference=difference)
    return net


def _rebuild(folder: Path, manifest: Manifest) -> nn.Module:
    if manifest.source is None:
        raise ArchiveError(
            f"{folder} was converted from a bare module; pass it: load(folder, model=...), on the"
            " command line --backbone package.module:function."
        )
    try:
        if not is_registered(manifest.source):
            raise InputError(
                f"{manifest.source!r} is in no registry, and code that an archive names is never"
                " run."
            )
        return build_trusted(
            manifest.source, num_classes=manifest.num_classes, image_size=manifest.image_size
        )
    except (InputError, TypeError) as error:
        raise ArchiveError(f"{folder} cannot be rebuilt: {error}") from error


def _refuse_unregistered(folder: Path, blueprint: Blueprint) -> None:
    try:
        find_router(blueprint.router)
    except InputError as error:
        raise ArchiveError(
            f"{folder} needs router {blueprint.router!r}; register it before loading."
        ) from error
    if blueprint.gate not in GATES:
        raise ArchiveError(f"{folder} needs gate {blueprint.gate!r}; register it before loading.")


def _refuse_unkept(lowered: nn.Module) -> None:
    """What safetensors or `load` could not give back as it was is named before anything is
    written.
    """
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
            what = f"{type(value).__name__}, no tensor (quantised layers pack their weights)"
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


def _refuse_other_backbone(net: DynamicNetwork, state: dict[str, Tensor]) -> None:
    """The name must rebuild what `net` holds, or the archive could never be loaded."""
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
                " not be loaded. Say how it was built, for example net.source_options ="
                " {'num_classes': 10}, or set net.source = None and pass the backbone to load."
            )


def _labels(net: DynamicNetwork, labels: Sequence[str] | None) -> list[str] | None:
    """The class names to write, checked."""
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
            f"the label {strange!r} is not UTF-8, so no archive can hold it. Name it otherwise."
        )
    number = _num_outputs(net)
    if number is not None and number != len(names):
        raise InputError(
            f"there are {len(names)} labels for {number} outputs; give one name an output,"
            " or set net.labels = None."
        )
    return list(names)


def _num_outputs(net: DynamicNetwork) -> int | None:
    """As conversion found it; where modules were replaced since, as a copy of the network shows."""
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


def _untied(lowered: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state without shared tensors, contiguous, and which key is which other's twin."""
    first: dict[int, str] = {}
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    for key, tensor in lowered.state_dict(keep_vars=True).items():
        if id(tensor) in first:
            tied[key] = first[id(tensor)]
        else:
            first[id(tensor)] = key
            state[key] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return state, tied


def _traced_again(
    backbone: nn.Module, leaves: Sequence[type[nn.Module]], example: Tensor, wanted: str
) -> Trace | None:
    """The trace with the fingerprint `wanted`: today's, or, as older archives have them, one of
    eval mode alone or without answers; or None.
    """
    for again, shown in ((trace, example), (trace_eval, example), (trace_eval, None)):
        try:
            traced = again(backbone, leaves, shown)
        except TraceError:
            continue
        if fingerprint(traced.graph) == wanted:
            return traced
    return None


def _unsaved_floats(lowered: nn.Module) -> list[tuple[str, Tensor]]:
    """Floating buffers that no state dict holds."""
    saved = lowered.state_dict().keys()
    return [
        (key, buffer)
        for key, buffer in lowered.named_buffers()
        if key not in saved and buffer.is_floating_point()
    ]
