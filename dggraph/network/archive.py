"""Archives: a converted network in a folder, without pickle.

An archive has three files. `graph.json` holds the candidate edges and `model.safetensors` the
weights. `manifest.json` is written last. It holds a SHA-256 of each file and of itself, the MODEL
name, the fingerprint of the trace, the position of each block in the trace, preprocessing, labels
and budgets.

Loading never runs code that an archive names. The backbone is rebuilt from torchvision's or timm's
registry, or the caller passes it. Its trace must have the stored fingerprint, and the loaded
network must pass the same comparison with it as a newly converted one.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dggraph.compiler.copying import copy_model, stored_activations
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.errors import ArchiveError, InputError
from dggraph.graph.schema import from_json, to_json
from dggraph.models.preprocessing import Preprocess
from dggraph.models.registry import is_registered
from dggraph.network.archive_checks import (
    checked_labels,
    num_outputs_of,
    refuse_other_backbone,
    refuse_other_routers,
    refuse_unkept,
    replaced_modules,
)
from dggraph.network.conversion_arguments import plain_backbone
from dggraph.network.inference import InferenceNetwork
from dggraph.network.manifest import (
    GRAPH,
    MANIFEST,
    MAX_JSON_BYTES,
    SCHEMA_VERSION,
    WEIGHTS,
    AnyManifest,
    Manifest,
    MethodManifest,
    pack_blueprint,
    pack_budgets,
    pack_preprocess,
    read_manifest,
    seal,
    type_name,
    unpack_blueprint,
    unpack_budgets,
    unpack_preprocess,
)
from dggraph.network.network import DynamicNetwork
from dggraph.network.reconstruction import lower_again, rebuild_backbone, refuse_unregistered
from dggraph.network.standin import note_weights_
from dggraph.system.files import part_of, sha256_of, write_folder
from dggraph.system.paths import locate


def save(
    net: DynamicNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    *,
    notes: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write `net` to `folder` atomically.

    A process killed at any moment leaves either the old archive or the new one.

    Args:
        net: A converted network.
        folder: A path that does not exist, or an archive whose files are replaced. Links are
            followed.
        preprocess: How images become inputs; by default `net.preprocess`.
        labels: Class names; by default `net.labels`.
        notes: Names and contents of further files, which `load` does not read.

    Raises:
        InputError: `net` is not a converted network, or is optimised for inference; the labels do
            not fit it; or a weight is pruned, quantised or sparse (the error names it).
        ArchiveError: `folder` is something else or cannot be written, or `net.source` would not
            rebuild this backbone. An existing archive can still be loaded.

    Example:
        >>> import dggraph
        >>> dggraph.save(dggraph.convert("dggraph:resnet20_8"), "archive")
        >>> dggraph.load("archive").source
        'dggraph:resnet20_8'
    """
    folder = Path(os.path.realpath(locate(folder)))
    manifest, state = _packed(net, folder, preprocess, labels)
    parts = {GRAPH: lambda: to_json(net.graph).encode()}
    write_archive(folder, parts, state, manifest, notes=notes)


def write_archive(
    folder: Path,
    parts: dict[str, Callable[[], bytes]],
    state: dict[str, Tensor],
    manifest: AnyManifest,
    *,
    notes: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write `parts`, the weights, the sealed manifest and `notes` to `folder` atomically.

    People may edit the notes, so the manifest has no digests of them.

    Raises:
        ArchiveError: The folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        contents = chain(notes.items(), _parts(parts, state, manifest))
        write_folder(folder, contents, scratch_prefix=f".{folder.name[:80]}.")
    except OSError as error:
        raise ArchiveError(
            f"cannot write the archive {folder}: {error}. An existing archive there was not changed"
            " and can still be loaded."
        ) from error


def _parts(
    parts: dict[str, Callable[[], bytes]], state: dict[str, Tensor], manifest: AnyManifest
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file; the manifest is last and has the others' digests."""
    digests = {}
    for name, make in (parts | {WEIGHTS: partial(safetensors.torch.save, state)}).items():
        content = make()
        digests[name] = hashlib.sha256(content).hexdigest()
        yield name, content
    sealed = seal(manifest.model_copy(update={"sha256": digests}))
    yield MANIFEST, sealed.model_dump_json(indent=1, exclude_unset=True).encode()


def refuse_unsavable(
    net: DynamicNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Raise what `save` would raise, before any work is done; only errors of writing are not found.

    Raises:
        InputError: As for `save`.
        ArchiveError: As for `save`.
    """
    _packed(net, Path(os.path.realpath(locate(folder))), preprocess, labels)


def refuse_foreign_folder(folder: Path) -> None:
    """Raise ArchiveError if `folder` is there and is not an archive."""
    if os.path.lexists(folder) and not (folder / MANIFEST).is_file():
        raise ArchiveError(
            f"{folder} exists and is not a dggraph archive, so it is not overwritten. Choose"
            " another folder."
        )


def _packed(
    net: DynamicNetwork, folder: Path, preprocess: Preprocess | None, labels: Sequence[str] | None
) -> tuple[Manifest, dict[str, Tensor]]:
    """Return the manifest without digests, and the weights, after checking both."""
    if not isinstance(net, DynamicNetwork):
        raise InputError(
            f"save takes a converted network, not {type(net).__name__}. Convert it first."
        )
    if isinstance(net, InferenceNetwork):
        raise InputError(
            "a network optimised for inference has folded norms, so no backbone fits it. Save the"
            " network that it was made from."
        )
    refuse_foreign_folder(folder)
    refuse_unkept(net.lowered)
    refuse_other_routers(net)
    replaced = replaced_modules(net.lowered, net.converted.outline)
    whole = tuple(sorted(replaced.union(net.blueprint.whole)))
    given = net.labels if labels is None else labels
    names = None if given is None else checked_labels(given, num_outputs_of(net))
    state, tied = untied(net.lowered)
    is_named = net.source is not None and is_registered(net.source)
    if is_named:
        refuse_other_backbone(net)
    manifest = Manifest(
        format="dggraph",
        schema_version=SCHEMA_VERSION,
        source=net.source if is_named else None,
        num_classes=net.source_options.get("num_classes"),
        image_size=net.source_options.get("image_size"),
        **pack_blueprint(replace(net.blueprint, whole=whole)),
        tied=tied,
        dtypes={key: type_name(buffer) for key, buffer in unsaved_floats(net.lowered)},
        frozen=[
            key for key, parameter in net.lowered.named_parameters() if not parameter.requires_grad
        ],
        preprocess=pack_preprocess(preprocess if preprocess is not None else net.preprocess),
        labels=names,
        budgets=pack_budgets(net.budgets),
        weights_origin=net.weights_origin,
        sha256={},
    )
    return manifest, state


def load(folder: str | os.PathLike[str], model: nn.Module | None = None) -> DynamicNetwork:
    """Load a network from an archive.

    Args:
        folder: A folder written by `save`.
        model: The backbone, if the network was converted from a bare module. Only its structure is
            used, and it is not changed.

    Returns:
        The network, in eval mode, on the CPU, with the dtypes it was saved with.

    Raises:
        ArchiveError: The archive is damaged, was written by a newer version, or belongs to another
            backbone; or the loaded network differs from its backbone.

    Example:
        >>> import dggraph
        >>> dggraph.save(dggraph.convert("dggraph:resnet20_8"), "saved")
        >>> dggraph.load("saved").labels is None
        True
    """
    folder = locate(folder)
    manifest = read_manifest(folder)
    graph = from_json(_checked_part(folder, GRAPH, manifest, MAX_JSON_BYTES).read_bytes())
    state = read_state(folder, manifest)
    blueprint = unpack_blueprint(manifest)
    refuse_unregistered(folder, blueprint)
    with ordinary_surroundings(torch.device("cpu")):
        given = (
            rebuild_backbone(folder, manifest, state) if model is None else plain_backbone(model)
        )
        backbone = in_stored_type(given, manifest)
        net = lower_again(folder, backbone, graph, blueprint, state)
    net.report = replace(net.report, detached=stored_activations(given))
    restore_types_(net.lowered, state, manifest)
    net.source, net.source_options = manifest.source, options_of(manifest)
    if model is None:
        net.converted = replace(
            net.converted, source=net.source, source_options=dict(net.source_options)
        )
    net.labels = tuple(manifest.labels) if manifest.labels is not None else None
    net.preprocess = unpack_preprocess(manifest.preprocess)
    net.budgets = unpack_budgets(manifest)
    note_weights_(net, manifest.weights_origin)
    return net


def read_state(folder: Path, manifest: Manifest | MethodManifest) -> dict[str, Tensor]:
    """Return the state dict in an archive, tied tensors included.

    Raises:
        ArchiveError: The file is missing, damaged or was changed.
    """
    file = _checked_part(folder, WEIGHTS, manifest)
    try:
        state = safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArchiveError(f"{file} is not a readable safetensors file: {error}.") from error
    return state | {key: state[twin] for key, twin in manifest.tied.items() if twin in state}


def _checked_part(
    folder: Path, name: str, manifest: Manifest | MethodManifest, limit: float = float("inf")
) -> Path:
    file = part_of(folder, name)
    if file.is_file() and file.stat().st_size > limit:
        raise ArchiveError(f"{file} is larger than {limit:.0f} bytes, so it is not dggraph's.")
    if not file.is_file() or sha256_of(file) != manifest.sha256.get(name):
        raise ArchiveError(
            f"{file} is missing or differs from the digest in the manifest. Copy the archive again."
        )
    return file


def in_stored_type(given: nn.Module, manifest: Manifest | MethodManifest) -> nn.Module:
    """Return a copy of a backbone on the CPU, with the dtype of the archive."""
    backbone = copy_model(given).to("cpu")
    for tensor in (*backbone.parameters(), *backbone.buffers()):
        if tensor.is_floating_point():  # Module.to would cut complex weights to their real part
            tensor.data = tensor.data.to(getattr(torch, manifest.dtype))
    return backbone


def restore_types_(
    lowered: nn.Module, state: dict[str, Tensor], manifest: Manifest | MethodManifest
) -> None:
    """Give tensors the dtypes, and parameters the `requires_grad`, of the archive. In place."""
    for key, tensor in lowered.state_dict(keep_vars=True).items():
        if tensor.dtype != state[key].dtype:
            tensor.data = state[key]
    for key, buffer in unsaved_floats(lowered):
        buffer.data = buffer.data.to(getattr(torch, manifest.dtypes.get(key, manifest.dtype)))
    for key, parameter in lowered.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(key not in manifest.frozen)


def options_of(manifest: Manifest | MethodManifest) -> dict[str, int]:
    """Return the options of the backbone's builder."""
    options = {"num_classes": manifest.num_classes, "image_size": manifest.image_size}
    return {key: value for key, value in options.items() if value is not None}


def untied(lowered: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state dict without shared tensors, contiguous, and {key: key with its tensor}."""
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


def unsaved_floats(lowered: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the floating-point buffers that are not in the state dict."""
    saved = lowered.state_dict().keys()
    return [
        (key, buffer)
        for key, buffer in lowered.named_buffers()
        if key not in saved and buffer.is_floating_point()
    ]
