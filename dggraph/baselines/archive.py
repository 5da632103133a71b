"""Archives of networks of either kind: `dggraph.save` and `dggraph.load`.

The archive of a baseline's network holds the method and its options instead of a graph. Loading
applies the method to the backbone again, whose trace must have the stored fingerprint, and then
loads the weights.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.registry import BASELINES
from dggraph.compiler.lowered import ROUTING
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.errors import ArchiveError, DggraphError, InputError
from dggraph.models.preprocessing import Preprocess
from dggraph.models.registry import is_registered
from dggraph.network import archive
from dggraph.network.archive_checks import (
    changed_additions,
    checked_labels,
    refuse_other_shapes,
    refuse_unkept,
    replaced_modules,
    run_for_outputs,
)
from dggraph.network.conversion_arguments import plain_backbone
from dggraph.network.manifest import (
    METHOD_SCHEMA_VERSION,
    MethodManifest,
    method_of,
    pack_preprocess,
    read_manifest,
    read_method_manifest,
    type_name,
    unpack_preprocess,
)
from dggraph.network.network import DynamicNetwork
from dggraph.network.reconstruction import affordable_bytes, rebuild_backbone, refuse_other_kinds
from dggraph.network.standin import note_weights_
from dggraph.system.devices import first_weight
from dggraph.system.paths import locate
from dggraph.system.tensor_memory import TensorMemoryError, at_most_bytes

ACTIVATIONS = 1000
"""What a method's check of itself may hold at one time, in copies of its input."""


def save(
    net: DynamicNetwork | BaselineNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    *,
    notes: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write `net` to `folder` atomically.

    A process killed at any moment leaves either the old archive or the new one.

    Args:
        net: A converted network, or one that a method of `dggraph.baselines` returned.
        folder: A path that does not exist, or an archive whose files are replaced. Links are
            followed.
        preprocess: How images become inputs; by default `net.preprocess`.
        labels: Class names; by default `net.labels`.
        notes: Names and contents of further files, which `load` does not read.

    Raises:
        InputError: `net` is neither, or is optimised for inference; the labels do not fit it; or a
            weight is pruned, quantised or sparse (the error names it).
        ArchiveError: `folder` is something else or cannot be written, or `net.source` would not
            rebuild this backbone. An existing archive can still be loaded.

    Example:
        >>> import dggraph
        >>> dggraph.save(dggraph.convert("dggraph:resnet20_8"), "archive")
        >>> dggraph.load("archive").source
        'dggraph:resnet20_8'
    """
    if isinstance(net, BaselineNetwork):
        folder = Path(os.path.realpath(locate(folder)))
        manifest = _packed(net, folder, preprocess, labels)
        state, tied = archive.untied(net.lowered)
        packed = manifest.model_copy(update={"tied": tied})
        archive.write_archive(folder, {}, state, packed, notes=notes)
    else:
        archive.save(net, folder, preprocess, labels, notes=notes)


def refuse_unsavable(
    net: DynamicNetwork | BaselineNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Raise what `save` would raise, before any work is done; only errors of writing are not found.

    Raises:
        InputError: As for `save`.
        ArchiveError: As for `save`.
    """
    if isinstance(net, BaselineNetwork):
        _packed(net, Path(os.path.realpath(locate(folder))), preprocess, labels)
    else:
        archive.refuse_unsavable(net, folder, preprocess, labels)


def load(
    folder: str | os.PathLike[str], model: nn.Module | None = None
) -> DynamicNetwork | BaselineNetwork:
    """Load a network from an archive.

    Args:
        folder: A folder written by `save`.
        model: The backbone, if the network was made from a bare module. Only its structure is used,
            and it is not changed.

    Returns:
        The network, in eval mode, on the CPU, with the dtypes it was saved with: a converted one,
        or that of a method of `dggraph.baselines`.

    Raises:
        ArchiveError: The archive is damaged, was written by a newer version, or belongs to another
            backbone; or its method is unknown; or the loaded network differs from its backbone.

    Example:
        >>> import dggraph
        >>> dggraph.save(dggraph.convert("dggraph:resnet20_8"), "saved")
        >>> dggraph.load("saved").labels is None
        True
    """
    place = locate(folder)
    return archive.load(place, model) if method_of(place) is None else _load(place, model)


def stored_classes(folder: Path) -> int | None:
    """Return the number of classes that the backbone of an archive was built with, if stored.

    Raises:
        ArchiveError: The manifest is missing or damaged.
    """
    if method_of(folder) is None:
        return read_manifest(folder).num_classes
    return read_method_manifest(folder).num_classes


def _packed(
    net: BaselineNetwork,
    folder: Path,
    preprocess: Preprocess | None,
    labels: Sequence[str] | None,
) -> MethodManifest:
    """Return the manifest without digests and tied tensors, after checking the network."""
    archive.refuse_foreign_folder(folder)
    refuse_unkept(net.lowered)
    _refuse_other_modules(net)
    given = net.labels if labels is None else labels
    names = None
    if given is not None:
        names = checked_labels(given, run_for_outputs(net.lowered, net.input_shape))
    is_named = net.source is not None and is_registered(net.source)
    if is_named:
        refuse_other_shapes(str(net.source), net.source_options, net.lowered, (ROUTING,))
    return MethodManifest(
        format="dggraph",
        schema_version=METHOD_SCHEMA_VERSION,
        method=net.method,
        options=dict(net.options),
        source=net.source if is_named else None,
        num_classes=net.source_options.get("num_classes"),
        image_size=net.source_options.get("image_size"),
        fingerprint=net.fingerprint,
        input_shape=list(net.input_shape),
        dtype=type_name(first_weight(net)),
        tied={},
        dtypes={key: type_name(value) for key, value in archive.unsaved_floats(net.lowered)},
        frozen=[
            key for key, parameter in net.lowered.named_parameters() if not parameter.requires_grad
        ],
        preprocess=pack_preprocess(preprocess if preprocess is not None else net.preprocess),
        labels=names,
        weights_origin=net.weights_origin,
        sha256={},
    )


def _refuse_other_modules(net: BaselineNetwork) -> None:
    """Raise InputError if a module is not what the method made or met, as `load` will.

    A layer that tracing does not enter may take another's place: its weights are in the archive.
    """
    added = [key for key, _, _ in changed_additions(net.lowered, net.outline)]
    for name in (*added, *sorted(replaced_modules(net.lowered, net.outline))):
        raise InputError(
            f"{name} was replaced after {net.method} was applied, and `load` applies it to a"
            " backbone again, so it could not read this archive. Replace the module in the"
            " backbone first, and apply the method to that."
        )


def _load(folder: Path, model: nn.Module | None) -> BaselineNetwork:
    manifest = read_method_manifest(folder)
    if manifest.method not in BASELINES:
        raise ArchiveError(
            f"{folder} needs the method {manifest.method!r}, and this version has only"
            f" {', '.join(BASELINES)}. Upgrade dggraph."
        )
    state = archive.read_state(folder, manifest)
    with ordinary_surroundings(torch.device("cpu")):
        given = (
            rebuild_backbone(folder, manifest, state) if model is None else plain_backbone(model)
        )
        backbone = archive.in_stored_type(given, manifest).eval()
        example = torch.zeros((1, *manifest.input_shape), dtype=getattr(torch, manifest.dtype))
        try:
            with at_most_bytes(affordable_bytes(state) + ACTIVATIONS * example.nbytes):
                net = BASELINES[manifest.method](backbone, example, **manifest.options)
        except (DggraphError, TypeError, TensorMemoryError) as error:
            raise ArchiveError(f"{folder} cannot be rebuilt: {error}") from error
    assert isinstance(net, BaselineNetwork)
    if net.fingerprint != manifest.fingerprint:
        raise ArchiveError(
            f"{folder} was made from another backbone: the trace of {type(given).__name__} differs"
            " from the stored one. Pass the backbone that it was made from with load(folder,"
            " model=...), or use the versions of torchvision and timm that wrote it."
        )
    refuse_other_kinds(folder, net.lowered, state)
    try:
        net.lowered.load_state_dict(state)
    except RuntimeError as error:
        raise ArchiveError(
            f"the weights in {folder} do not fit its backbone:"
            f" {str(error).splitlines()[-1].strip()[:300]} Pass the backbone that it was made"
            " from, with load(folder, model=...)."
        ) from error
    archive.restore_types_(net.lowered, state, manifest)
    net.source, net.source_options = manifest.source, archive.options_of(manifest)
    net.labels = tuple(manifest.labels) if manifest.labels is not None else None
    net.preprocess = unpack_preprocess(manifest.preprocess)
    note_weights_(net, manifest.weights_origin)
    return net.eval()
