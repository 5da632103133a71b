"""`manifest.json`: its strict, versioned schema, its seal, and the conversion from and to it.

The seal is a SHA-256 of the rest of the manifest.
"""

import hashlib
import json
import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from dggraph.compiler.planning import Aggregation
from dggraph.compiler.regions import Region
from dggraph.compiler.stages import FoundStage
from dggraph.errors import ArchiveError
from dggraph.graph.ir import EdgeKind
from dggraph.models.origins import UNKNOWN
from dggraph.models.preprocessing import Preprocess
from dggraph.network.blueprint import Blueprint
from dggraph.network.budgets import Budget, BudgetCurve, BudgetPoint
from dggraph.system.files import part_of

SCHEMA_VERSION = 1
METHOD_SCHEMA_VERSION = 2
"""The version of archives with a method; older versions of dggraph ask for an upgrade."""
GRAPH, WEIGHTS, MANIFEST = "graph.json", "model.safetensors", "manifest.json"
"""The names of the files in an archive."""
MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_INPUT_ELEMENTS = 1 << 26

Name = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=1 << 16)]
FloatType = Literal["float16", "bfloat16", "float32", "float64"]


def _affordable(shape: list[int]) -> list[int]:
    if math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise ValueError(f"more than {MAX_INPUT_ELEMENTS} elements")
    return shape


Finite = Annotated[float, Field(allow_inf_nan=False)]
Shape = Annotated[list[Size], Field(min_length=3, max_length=3), AfterValidator(_affordable)]


class Strict(BaseModel):
    """A part of a manifest: no unknown fields, and no conversion of values."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Region(Strict):
    path: Name
    input: Name
    output: Name
    fx_nodes: list[Name]
    input_shape: list[Count]
    shape: list[Count]
    macs: Count
    num_mac_ops: Count


class _Stage(Strict):
    path: Name
    entry: Name
    entry_block: _Region | None
    entry_shape: list[Count]
    blocks: Annotated[list[_Region], Field(min_length=1)]
    output: Name
    output_shape: list[Count]
    channel_axis: Literal[1, -1]
    kind: EdgeKind
    kept_because: Name


class _Static(Strict):
    module_path: Name
    macs: Count
    reason: Name


class PackedPreprocess(Strict):
    """A `Preprocess` that images can go through."""

    input_size: Shape
    mean: Annotated[list[Finite], Field(min_length=1)]
    std: Annotated[list[Annotated[Finite, Field(gt=0)]], Field(min_length=1)]
    interpolation: Literal[
        "nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"
    ]
    crop_fraction: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
    antialias: bool = True

    @model_validator(mode="after")
    def _has_a_value_for_each_channel(self) -> "PackedPreprocess":
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.input_size[0]):
                raise ValueError(f"{name} needs one number, or one for each channel")
        return self


class _Point(Strict):
    threshold: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
    kept: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Budget(_Point):
    target: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    budget_met: bool


class _Budgets(Strict):
    num_instances: Count
    points: Annotated[list[_Point], Field(min_length=1)]
    budgets: list[_Budget]


class Manifest(Strict):
    """The contents of an archive apart from the graph and the weights."""

    format: Literal["dggraph"]
    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)]
    source: Name | None
    num_classes: Size | None
    image_size: Size | None
    fingerprint: Name
    router: Name
    gate: Name
    leaves: list[Name]
    input_shape: Shape
    dtype: FloatType
    found: list[_Stage]
    static: list[_Static]
    tied: dict[str, str]
    dtypes: dict[str, FloatType]
    """The dtypes of floating-point buffers that are not in the state dict."""
    frozen: list[str]
    """The names of parameters that require no gradient."""
    preprocess: PackedPreprocess | None
    labels: list[str] | None
    budgets: _Budgets | None
    granularity: Annotated[int, Field(ge=1)] | Literal["edge", "channel", "pixel"] = "edge"
    """How many weights an edge has; archives written before version 0.2 do not record it."""
    aggregation: Aggregation = "sum"
    """How nodes of lifted stages read their sources; as for `granularity`."""
    weights_origin: Name = UNKNOWN
    """The origin of the weights; archives written before version 0.2 do not record it."""
    whole: list[Name] = []
    """Paths of modules that took a place after conversion; not written if there are none."""
    sha256: dict[str, str]


class MethodManifest(Strict):
    """The contents of the archive of a baseline's network, apart from the weights.

    The method and its options say how to build the network from its backbone.
    """

    format: Literal["dggraph"]
    schema_version: Annotated[int, Field(ge=2, le=METHOD_SCHEMA_VERSION)]
    method: Name
    options: dict[Name, int | float | str]
    source: Name | None
    num_classes: Size | None
    image_size: Size | None
    fingerprint: Name
    input_shape: Shape
    dtype: FloatType
    tied: dict[str, str]
    dtypes: dict[str, FloatType]
    """The dtypes of floating-point buffers that are not in the state dict."""
    frozen: list[str]
    """The names of parameters that require no gradient."""
    preprocess: PackedPreprocess | None
    labels: list[str] | None
    weights_origin: Name
    sha256: dict[str, str]


AnyManifest = TypeVar("AnyManifest", Manifest, MethodManifest)


def pack_blueprint(blueprint: Blueprint) -> dict[str, Any]:
    """Return the manifest's fields that are needed to lower the same trace again."""
    stages = []
    for stage, reason in zip(blueprint.found, blueprint.kept_because, strict=True):
        document = asdict(stage) | {"kept_because": reason}
        for block in (
            *([document["entry_block"]] if document["entry_block"] else []),
            *document["blocks"],
        ):
            del block["signature"]
        stages.append(_Stage.model_validate_json(json.dumps(document)))
    return {
        "fingerprint": blueprint.fingerprint,
        "router": blueprint.router,
        "gate": blueprint.gate,
        "granularity": blueprint.granularity,
        "aggregation": blueprint.aggregation,
        "leaves": list(blueprint.leaves),
        **({"whole": list(blueprint.whole)} if blueprint.whole else {}),
        "input_shape": list(blueprint.input_shape),
        "dtype": blueprint.dtype,
        "found": stages,
        "static": [
            _Static(module_path=path, macs=macs, reason=reason)
            for path, macs, reason in blueprint.static
        ],
    }


def unpack_blueprint(manifest: Manifest) -> Blueprint:
    """Return the blueprint that `pack_blueprint` packed."""
    return Blueprint(
        fingerprint=manifest.fingerprint,
        found=tuple(_unpack(stage) for stage in manifest.found),
        static=tuple((part.module_path, part.macs, part.reason) for part in manifest.static),
        kept_because=tuple(stage.kept_because for stage in manifest.found),
        router=manifest.router,
        gate=manifest.gate,
        granularity=manifest.granularity,
        aggregation=manifest.aggregation,
        leaves=tuple(manifest.leaves),
        whole=tuple(manifest.whole),
        input_shape=tuple(manifest.input_shape),
        dtype=manifest.dtype,
    )


def type_name(tensor: Tensor) -> Any:
    """Return the `FloatType` of `tensor`; pydantic refuses any other type."""
    return str(tensor.dtype).removeprefix("torch.")


def pack_preprocess(preprocess: Preprocess | None) -> PackedPreprocess | None:
    """Convert `preprocess` to its form in the manifest."""
    return (
        PackedPreprocess.model_validate_json(json.dumps(asdict(preprocess)))
        if preprocess is not None
        else None
    )


def unpack_preprocess(packed: PackedPreprocess | None) -> Preprocess | None:
    """Return the preprocessing that `pack_preprocess` packed."""
    return Preprocess(**_tupled(packed)) if packed is not None else None


def pack_budgets(curve: BudgetCurve | None) -> _Budgets | None:
    """Convert `curve` to its form in the manifest."""
    return _Budgets.model_validate_json(json.dumps(asdict(curve))) if curve is not None else None


def unpack_budgets(manifest: Manifest) -> BudgetCurve | None:
    """Return the curve that `pack_budgets` packed."""
    if manifest.budgets is None:
        return None
    return BudgetCurve(
        num_instances=manifest.budgets.num_instances,
        points=tuple(BudgetPoint(**point.model_dump()) for point in manifest.budgets.points),
        budgets=tuple(Budget(**budget.model_dump()) for budget in manifest.budgets.budgets),
    )


def seal(manifest: AnyManifest) -> AnyManifest:
    """Return `manifest` with the SHA-256 of the rest of its contents."""
    parts = {name: digest for name, digest in manifest.sha256.items() if name != MANIFEST}
    content = manifest.model_copy(update={"sha256": parts}).model_dump_json(
        exclude_unset=True  # older archives lack newer fields, and their seals must stay valid
    )
    return manifest.model_copy(
        update={"sha256": parts | {MANIFEST: hashlib.sha256(content.encode()).hexdigest()}}
    )


def method_of(folder: Path) -> str | None:
    """Return the method of the network in the archive `folder`; None for a converted network.

    Raises:
        ArchiveError: It is not an archive, or its manifest is not JSON.
    """
    method = _read_document(folder).get("method")
    return method if isinstance(method, str) else None


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a converted network in `folder`.

    Raises:
        ArchiveError: It is missing, damaged or foreign, was written by a newer version, or belongs
            to the network of a baseline.
    """
    document = _read_document(folder)
    if "method" in document:
        raise ArchiveError(
            f"{folder} holds a network of the method {document['method']!r}, which has no graph and"
            " no paths. Load it with dggraph.load; `dggraph eval` measures its accuracy."
        )
    return _checked(folder, document, Manifest)


def read_method_manifest(folder: Path) -> MethodManifest:
    """Read and check the manifest of the network of a baseline in `folder`.

    Raises:
        ArchiveError: It is missing, damaged or foreign, or was written by a newer version.
    """
    return _checked(folder, _read_document(folder), MethodManifest)


def _read_document(folder: Path) -> dict[str, Any]:
    file = part_of(folder, MANIFEST)
    if not file.is_file():
        raise ArchiveError(f"{folder} is not a dggraph archive: it has no {MANIFEST}.")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise ArchiveError(
            f"{file} is larger than {MAX_JSON_BYTES} bytes, so it is not a manifest of dggraph."
        )
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{file} is not JSON: {error}.") from None
    return document if isinstance(document, dict) else {"": document}


def _checked(folder: Path, document: dict[str, Any], kind: type[AnyManifest]) -> AnyManifest:
    file = part_of(folder, MANIFEST)
    known = SCHEMA_VERSION if kind is Manifest else METHOD_SCHEMA_VERSION
    version = document.get("schema_version")
    if type(version) is int and version > known:
        raise ArchiveError(
            f"{folder} has schema version {version}, and this dggraph reads up to {known}. To load"
            " it, upgrade dggraph."
        )
    try:
        manifest = kind.model_validate_json(json.dumps(document))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArchiveError(
            f"{file}: {where or 'document'}: {first['msg']}; the manifest is damaged or foreign."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{file} is not JSON: {error}.") from None
    if seal(manifest) != manifest:
        raise ArchiveError(
            f"{file} was changed after it was written: its SHA-256 differs. Copy the archive again."
        )
    return manifest


def refuse_unknown_names(folder: Path, found: Sequence[FoundStage], known: Collection[str]) -> None:
    """Raise ArchiveError if `found` has the name of an fx node that is not in `known`.

    `known` are the names in the trace of the backbone.
    """
    for stage in found:
        names = {stage.entry, stage.output}
        for block in (*([stage.entry_block] if stage.entry_block else []), *stage.blocks):
            names |= {block.input, block.output, *block.fx_nodes}
        unknown = sorted(names - set(known))
        if unknown:
            raise ArchiveError(
                f"{folder}: stage {stage.path!r} names {unknown[:3]}, which the backbone's trace"
                " does not have."
            )


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
    """Return the fields of `packed`, with lists as the tuples of frozen dataclasses."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in packed.model_dump().items()
    }
