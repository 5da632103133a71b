"""Archives: a converted network in a folder, without pickle.

`graph.json` (what may connect), `model.safetensors` (every weight) and `manifest.json` (written last: a SHA-256 of each and of itself,
the MODEL name, the trace's fingerprint, where blocks sit in it, preprocessing and labels). Loading never runs code that an archive names: a
backbone is rebuilt from torchvision's or timm's registry, or the caller brings it, and its trace must have the stored fingerprint.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from dggraph.compiler.discovery import Discovery, FoundStage, discover
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.tracing import fingerprint, trace
from dggraph.errors import ArchiveError, DggraphError, InputError
from dggraph.graph.ir import EdgeKind
from dggraph.graph.schema import from_json, to_json
from dggraph.ops.gating import GATES
from dggraph.ops.routing import find_router
from dggraph.runtime.conversion import assemble
from dggraph.runtime.models import build_trusted, is_registered
from dggraph.runtime.network import DynamicNetwork, Recipe
from dggraph.runtime.preprocessing import Preprocess

SCHEMA_VERSION = 1
GRAPH, WEIGHTS, MANIFEST = "graph.json", "model.safetensors", "manifest.json"
MAX_JSON_BYTES = 64 * 1024 * 1024

Name = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Region(_Strict):
    path: Name
    input: Name
    output: Name
    fx_nodes: list[Name]
    input_shape: list[Count]
    shape: list[Count]
    macs: Count
    num_mac_ops: Count


class _Stage(_Strict):
    path: Name
    entry: Name
    entry_block: _Region | None
    entry_shape: list[Count]
    blocks: list[_Region]
    output: Name
    output_shape: list[Count]
    channel_axis: int
    kind: EdgeKind


class _Preprocess(_Strict):
    input_size: list[Count]
    mean: list[float]
    std: list[float]
    interpolation: Name
    crop_fraction: float
    antialias: bool = True


class _Manifest(_Strict):
    format: Literal["dggraph"]
    schema_version: int
    source: Name | None
    num_classes: Count | None
    fingerprint: Name
    router: Name
    gate: Name
    input_shape: list[Count]
    found: list[_Stage]
    tied: dict[str, str]
    preprocess: _Preprocess | None
    labels: list[str] | None
    sha256: dict[str, str]


def save(
    net: DynamicNetwork,
    folder: str | os.PathLike[str],
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write `net` to `folder`, all of it or nothing: a temporary folder beside it, synced, then renamed.

    Args:
        net: a converted network.
        folder: must not exist, or be an archive, which is replaced.
        preprocess: how images become its input; by default what `net.preprocess` says.
        labels: class names; by default `net.labels`.

    Raises:
        ArchiveError: `folder` is something else, or cannot be written; what was there is unchanged.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ArchiveError(f"{folder} exists and is no dggraph archive, so it is not overwritten. Choose another folder.")
    preprocess = preprocess if preprocess is not None else net.preprocess
    labels = tuple(labels) if labels is not None else net.labels
    state, tied = _untied(net.lowered)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            parts = Path(scratch) / "new"
            parts.mkdir()
            _write(parts / GRAPH, to_json(net.graph).encode())
            _write(parts / WEIGHTS, safetensors.torch.save(state))
            manifest = _Manifest(
                format="dggraph",
                schema_version=SCHEMA_VERSION,
                source=net.source if net.source is not None and is_registered(net.source) else None,
                num_classes=_num_classes(net),
                fingerprint=net.recipe.fingerprint,
                router=net.recipe.router,
                gate=net.recipe.gate,
                input_shape=list(net.recipe.input_shape),
                found=[_pack(stage) for stage in net.recipe.found],
                tied=tied,
                preprocess=_Preprocess.model_validate_json(json.dumps(asdict(preprocess))) if preprocess else None,
                labels=list(labels) if labels is not None else None,
                sha256={name: _digest(parts / name) for name in (GRAPH, WEIGHTS)},
            )
            _write(parts / MANIFEST, _seal(manifest).model_dump_json(indent=1).encode())
            if folder.exists():
                os.rename(folder, Path(scratch) / "old")
                try:
                    os.rename(parts, folder)
                except OSError:
                    os.rename(Path(scratch) / "old", folder)
                    raise
            else:
                os.rename(parts, folder)
    except OSError as error:
        raise ArchiveError(f"cannot write the archive {folder}: {error}. What was there before is unchanged.") from error


def load(folder: str | os.PathLike[str], model: nn.Module | None = None) -> DynamicNetwork:
    """Read an archive.

    Args:
        folder: what `save` wrote.
        model: the backbone, for a network that was converted from a bare module. Only its structure is used.

    Returns:
        The network, in eval mode, on the CPU.

    Raises:
        ArchiveError: damaged, newer than this version, or not the archive of this backbone.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name in (GRAPH, WEIGHTS):
        if not (folder / name).is_file() or _digest(folder / name) != manifest.sha256.get(name):
            raise ArchiveError(f"{folder / name} is missing or not what the manifest recorded; copy the archive again.")
    graph = from_json((folder / GRAPH).read_text(encoding="utf-8"))
    try:
        find_router(manifest.router)
    except InputError as error:
        raise ArchiveError(f"{folder} needs router {manifest.router!r}; register it before loading.") from error
    if manifest.gate not in GATES:
        raise ArchiveError(f"{folder} needs gate {manifest.gate!r}; register it before loading.")
    if model is None:
        if manifest.source is None:
            raise ArchiveError(f"{folder} was converted from a bare module; pass it: load(folder, model=...).")
        try:
            model = build_trusted(manifest.source, num_classes=manifest.num_classes)
        except InputError as error:
            raise ArchiveError(f"{folder} cannot be rebuilt: {error}") from error
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArchiveError(f"{folder / WEIGHTS} is no readable safetensors file: {error}.") from error
    floats = next(
        (tensor.dtype for key, tensor in state.items() if tensor.is_floating_point() and not key.startswith("dg_")),
        torch.float32,
    )
    traced = trace(model.to(dtype=floats) if floats != torch.float32 else model)
    if fingerprint(traced.graph) != manifest.fingerprint:
        raise ArchiveError(
            f"{folder} was made from another structure than {type(model).__name__} has here: the traces differ. Use the model, and the "
            "versions of torch, torchvision and timm, that it was converted with."
        )
    shapes = profile(traced.module, traced.graph, torch.zeros((1, *manifest.input_shape), dtype=floats))
    flow = Flow(traced, shapes)
    found = tuple(_unpack(stage) for stage in manifest.found)
    _check_found(folder, flow, found)
    recipe = Recipe(
        fingerprint=manifest.fingerprint,
        found=found,
        router=manifest.router,
        gate=manifest.gate,
        input_shape=tuple(manifest.input_shape),
    )
    discovery = Discovery(stages=found, total_macs=sum(shapes.macs.values()), static=discover(traced, shapes).static)
    try:
        net = assemble(flow, traced, graph, recipe, discovery, threshold=0.5)
    except (DggraphError, ValueError, StopIteration, KeyError, IndexError) as error:
        raise ArchiveError(f"{folder}: graph.json and the manifest do not describe one network: {error}.") from error
    _load_state(folder, net, state, manifest.tied)
    net.source = manifest.source
    net.labels = tuple(manifest.labels) if manifest.labels is not None else None
    if manifest.preprocess is not None:
        net.preprocess = Preprocess(**_tupled(manifest.preprocess))
    return net.eval()


def _load_state(folder: Path, net: DynamicNetwork, state: dict[str, Tensor], tied: dict[str, str]) -> None:
    state |= {key: state[twin] for key, twin in tied.items() if twin in state}
    try:
        net.lowered.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ArchiveError(f"{folder / WEIGHTS} does not fit the network: {str(error).splitlines()[-1].strip()}") from error


def _read_manifest(folder: Path) -> _Manifest:
    file = folder / MANIFEST
    if not file.is_file():
        raise ArchiveError(f"{folder} is no dggraph archive: it has no {MANIFEST}.")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ArchiveError(f"{file} is larger than {MAX_JSON_BYTES} bytes; no archive of ours is.")
    try:
        document = json.loads(file.read_bytes())
        version = document.get("schema_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ArchiveError(f"{folder} has schema version {version}, this dggraph reads {SCHEMA_VERSION}; upgrade dggraph.")
        manifest = _Manifest.model_validate_json(json.dumps(document))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArchiveError(f"{file}: {where or 'document'}: {first['msg']}; the manifest is damaged or foreign.") from None
        raise ArchiveError(f"{file} is no JSON: {error}.") from None
    if _seal(manifest) != manifest:
        raise ArchiveError(f"{file} is not what was written: its own SHA-256 differs; copy the archive again.")
    return manifest


def _seal(manifest: _Manifest) -> _Manifest:
    """`manifest` with the SHA-256 of everything else in it."""
    parts = {name: digest for name, digest in manifest.sha256.items() if name != MANIFEST}
    content = manifest.model_copy(update={"sha256": parts}).model_dump_json()
    return manifest.model_copy(update={"sha256": parts | {MANIFEST: hashlib.sha256(content.encode()).hexdigest()}})


def _check_found(folder: Path, flow: Flow, found: Sequence[FoundStage]) -> None:
    for stage in found:
        names = {stage.entry, stage.output}
        for block in (*([stage.entry_block] if stage.entry_block else []), *stage.blocks):
            names |= {block.input, block.output, *block.fx_nodes}
        unknown = sorted(names - set(flow.by_name))
        if unknown or not stage.blocks:
            raise ArchiveError(f"{folder}: stage {stage.path!r} names {unknown[:3]}, which the backbone's trace does not have.")


def _pack(stage: FoundStage) -> _Stage:
    document = asdict(stage)
    for block in (*([document["entry_block"]] if document["entry_block"] else []), *document["blocks"]):
        del block["signature"]
    return _Stage.model_validate_json(json.dumps(document))


def _unpack(stage: _Stage) -> FoundStage:
    def region(packed: _Region) -> Region:
        return Region(signature=None, **_tupled(packed))

    return FoundStage(
        path=stage.path,
        entry=stage.entry,
        entry_block=region(stage.entry_block) if stage.entry_block else None,
        entry_shape=tuple(stage.entry_shape),
        blocks=tuple(region(block) for block in stage.blocks),
        output=stage.output,
        output_shape=tuple(stage.output_shape),
        channel_axis=stage.channel_axis,
        kind=stage.kind,
    )


def _tupled(packed: BaseModel) -> dict[str, Any]:
    """The fields of `packed`, lists as the tuples that frozen dataclasses hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in packed.model_dump().items()}


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


def _num_classes(net: DynamicNetwork) -> int | None:
    output = next(iter(reversed(net.lowered.graph.nodes))).args[0][0]
    if output.op != "call_module":
        return None
    head = net.lowered.get_submodule(str(output.target))
    return getattr(head, "out_features", None)


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
