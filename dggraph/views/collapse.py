"""Levels of detail of a picture: every op of a block, every block, or one card per stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dggraph.graph.ir import BlockNode, DynamicGraph
from dggraph.views.escaping import count, plural

Level = Literal["op", "block", "stage"]
LEVELS: tuple[Level, ...] = ("op", "block", "stage")
MAX_CARDS = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One drawn node: a node of the graph, or a stage."""

    name: str
    """Name of the node or of the stage."""
    kind: Literal["entry", "block", "out", "stage"]
    label: str
    details: tuple[str, ...]
    """Lines below the label: MACs, ops, and the shape if it is not that of the stage."""
    members: tuple[str, ...]
    """Nodes of the graph that the card represents."""


def choose_level(graph: DynamicGraph) -> Level:
    """Return `block` for at most `MAX_CARDS` nodes, else `stage`."""
    return "block" if graph.nx.number_of_nodes() <= MAX_CARDS else "stage"


def deal_cards(
    graph: DynamicGraph, stage: str, level: Level, ops: Mapping[str, Sequence[str]]
) -> tuple[Card, ...]:
    """Return the drawn nodes of `stage`, left to right.

    `ops` maps each node to the names of its operations, for the level `op`.
    """
    nodes = graph.nodes(stage)
    if level == "stage":
        blocks = tuple(node.name for node in nodes if node.kind == "block")
        macs = sum(node.macs for node in nodes if node.kind == "block")
        details = (plural(len(graph.edges(stage)), "edge"), f"{count(macs)} MACs")
        return (
            Card(
                name=stage,
                kind="stage",
                label=plural(len(blocks), "block"),
                details=details,
                members=blocks,
            ),
        )
    usual = usual_shape(graph, stage)
    return tuple(
        _card(node, usual, ops.get(node.name, ()) if level == "op" else ()) for node in nodes
    )


def usual_shape(graph: DynamicGraph, stage: str) -> tuple[int, ...] | None:
    """Return the common shape of all nodes of `stage`, or None if their shapes differ."""
    shapes = {node.shape for node in graph.nodes(stage)}
    return shapes.pop() if len(shapes) == 1 else None


def format_shape(shape: Sequence[int]) -> str:
    """Return for example `256×56×56`."""
    return "×".join(str(size) for size in shape)


def _card(node: BlockNode, usual: tuple[int, ...] | None, ops: Sequence[str]) -> Card:
    details = () if usual is not None else (format_shape(node.shape),)
    if node.macs:
        details = (*details, count(node.macs))
    label = "out" if node.kind == "out" else node.module_path or node.name
    return Card(
        name=node.name, kind=node.kind, label=label, details=(*details, *ops), members=(node.name,)
    )
