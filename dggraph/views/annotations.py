"""Marks of nodes and edges in a picture, and how each mark is drawn.

A picture shows a graph alone, the path of one image, or the difference between two paths.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dggraph.errors import GraphError
from dggraph.graph.ir import ActivatedPath, DynamicGraph

NodeMark = Literal["plain", "live", "unused", "dead", "first", "second", "both"]
EdgeMark = Literal["static", "candidate", "active", "dropped", "first", "second", "both"]
Ends = tuple[str, str]

INK, GREY, FAINT, ACCENT, AMBER = "#1f2933", "#5f6c79", "#cbd2d9", "#0b6e8a", "#96610f"
FIRST, SECOND = "#d55e00", "#0072b2"
DEAD_INK = "#6b7784"


@dataclass(frozen=True, slots=True)
class Look:
    """The style of a mark."""

    stroke: str
    width: float
    fill: str = "none"
    is_dashed: bool = False
    is_struck: bool = False
    """Whether a line runs through it, so that it differs without colours too."""


NODE_LOOKS: Mapping[NodeMark, Look] = {
    "plain": Look(INK, 1.0, "#e6f2f5"),
    "live": Look(INK, 1.0, "#e6f2f5"),
    "unused": Look(AMBER, 1.0, "#fdf3e1", is_dashed=True, is_struck=True),
    "dead": Look("#b8c1ca", 0.8, "#f1f3f5", is_dashed=True),
    "first": Look(FIRST, 1.3, "#fbe6d8"),
    "second": Look(SECOND, 1.3, "#dcebf6"),
    "both": Look(INK, 1.0, "#ffffff"),
}
EDGE_LOOKS: Mapping[EdgeMark, Look] = {
    "dropped": Look(FAINT, 0.6),
    "candidate": Look("#9fb3c8", 0.8),
    "static": Look(INK, 1.3),
    "both": Look(INK, 1.3),
    "active": Look(ACCENT, 1.5),
    "second": Look(SECOND, 1.8),
    "first": Look(FIRST, 1.8),
}
"""Styles in drawing order: faint edges come first, so later ones are on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """One mark for every node and edge of a graph."""

    nodes: Mapping[str, NodeMark]
    edges: Mapping[Ends, EdgeMark]
    weights: Mapping[Ends, tuple[float, ...]]
    """Weights shown in the picture: one for a path, two for a difference, none for a graph."""


def mark_graph(graph: DynamicGraph) -> Marks:
    """Mark static and candidate edges."""
    edges: dict[Ends, EdgeMark] = {
        (edge.source, edge.target): "static" if edge.is_static else "candidate"
        for stage in graph.stages
        for edge in graph.edges(stage)
    }
    return Marks(nodes=dict.fromkeys(graph.nx, "plain"), edges=edges, weights={})


def mark_path(graph: DynamicGraph, path: ActivatedPath) -> Marks:
    """Mark active and dropped edges, and live, unused and dead nodes.

    Raises:
        GraphError: The path belongs to another graph.
    """
    weights = {ends: (weight,) for ends, weight in _weights(graph, path).items()}
    live, useful = path.live_nodes(graph), path.useful_nodes(graph)
    nodes: dict[str, NodeMark] = {
        name: "live" if name in useful else "unused" if name in live else "dead"
        for name in graph.nx
    }
    edges: dict[Ends, EdgeMark] = {
        ends: "active" if weight != 0 else "dropped" for ends, (weight,) in weights.items()
    }
    return Marks(nodes=nodes, edges=edges, weights=weights)


def mark_difference(graph: DynamicGraph, first: ActivatedPath, second: ActivatedPath) -> Marks:
    """Mark what only the first image uses, only the second, and both.

    A node is used if its output reaches `out` of its stage.

    Raises:
        GraphError: A path belongs to another graph.
    """
    one, two = _weights(graph, first), _weights(graph, second)
    mine, theirs = first.useful_nodes(graph), second.useful_nodes(graph)
    nodes: dict[str, NodeMark] = {
        name: _either(name in mine, name in theirs) or "dead" for name in graph.nx
    }
    edges: dict[Ends, EdgeMark] = {
        ends: _either(one[ends] != 0, two[ends] != 0) or "dropped" for ends in one
    }
    return Marks(nodes=nodes, edges=edges, weights={ends: (one[ends], two[ends]) for ends in one})


def join_marks(marks: Marks, members: tuple[str, ...]) -> NodeMark:
    """Return the mark of a card for several nodes: that of the most used one.

    It is `both` if each of two paths uses some of them.
    """
    found = {marks.nodes[name] for name in members}
    if {"first", "second"} <= found:
        return "both"
    order: tuple[NodeMark, ...] = ("both", "first", "second", "live", "plain", "unused", "dead")
    return next((mark for mark in order if mark in found), "plain")


def edge_width(mark: EdgeMark, weights: tuple[float, ...]) -> float:
    """Return the line width; that of an active edge grows with its weight, up to a bound."""
    return (
        round(min(0.6 + 1.4 * abs(weights[0]), 6), 2)
        if mark == "active"
        else EDGE_LOOKS[mark].width
    )


def _either(is_first: bool, is_second: bool) -> Literal["first", "second", "both"] | None:
    if is_first and is_second:
        return "both"
    return "first" if is_first else "second" if is_second else None


def _weights(graph: DynamicGraph, path: ActivatedPath) -> dict[Ends, float]:
    for stage in graph.stages:
        found, needed = len(path.weights.get(stage, ())), len(graph.edges(stage))
        if found != needed:
            raise GraphError(
                f"the path has {found} weights in stage {stage!r}, but the graph has {needed} edges"
                " there. Draw it on its own graph."
            )
    return {
        (edge.source, edge.target): weight
        for stage in graph.stages
        for edge, weight in zip(graph.edges(stage), path.weights[stage], strict=True)
    }
