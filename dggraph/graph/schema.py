"""The schema of `graph.json`: strict and versioned, unlike networkx's `node_link_data`."""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dggraph.errors import ArchiveError, GraphError
from dggraph.graph.ir import (
    BlockNode,
    CandidateEdge,
    DynamicGraph,
    EdgeKind,
    NodeKind,
    Residual,
    Stage,
)

SCHEMA_VERSION = 1

Name = Annotated[str, Field(max_length=300)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Stage(_Strict):
    name: Name
    residual: Residual
    channel_axis: Annotated[int, Field(ge=-1, le=1)]


class _Node(_Strict):
    name: Name
    stage: Name
    kind: NodeKind
    shape: Annotated[list[Count], Field(max_length=8)]
    macs: Count
    module_path: Name


class _Edge(_Strict):
    source: Name
    target: Name
    is_static: bool
    kind: EdgeKind


class _Graph(_Strict):
    schema_version: int
    name: Name
    stages: list[_Stage]
    nodes: list[_Node]
    edges: list[_Edge]


def to_json(graph: DynamicGraph) -> str:
    """Return `graph` as JSON; equal graphs give equal text."""
    nodes = [node for stage in graph.stages for node in graph.nodes(stage)]
    edges = [edge for stage in graph.stages for edge in graph.edges(stage)]
    document = {
        "schema_version": SCHEMA_VERSION,
        "name": graph.name,
        "stages": [
            {key: getattr(stage, key) for key in _Stage.model_fields}
            for stage in graph.stages.values()
        ],
        "nodes": [{key: getattr(node, key) for key in _Node.model_fields} for node in nodes],
        "edges": [{key: getattr(edge, key) for key in _Edge.model_fields} for edge in edges],
    }
    return json.dumps(document, indent=1)


def from_json(text: str | bytes) -> DynamicGraph:
    """Parse the text that `to_json` wrote, or its UTF-8.

    Raises:
        ArchiveError: the text is not JSON, does not follow the schema, has a newer version, or
            describes a graph that breaks an invariant.
    """
    try:
        document = json.loads(text)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if type(version) is int and version > SCHEMA_VERSION:
            raise ArchiveError(
                f"the graph has schema version {version}, and this dggraph reads version"
                f" {SCHEMA_VERSION}; upgrade dggraph."
            )
        if type(version) is int and version != SCHEMA_VERSION:
            raise ArchiveError(
                f"the graph has schema version {version}, which no dggraph has written; the file is"
                " not a dggraph archive."
            )
        parsed = _Graph.model_validate_json(text)
        return DynamicGraph(
            parsed.name,
            stages=[Stage(**stage.model_dump()) for stage in parsed.stages],
            nodes=[
                BlockNode(**{**node.model_dump(), "shape": tuple(node.shape)})
                for node in parsed.nodes
            ],
            edges=[CandidateEdge(**edge.model_dump()) for edge in parsed.edges],
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ArchiveError(
            f"graph.json: {where}: {first['msg']}; the file is damaged or not dggraph's."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"graph.json is not JSON: {error}; the file is damaged.") from None
    except GraphError as error:
        raise ArchiveError(f"graph.json describes an invalid graph: {error}") from error
