"""The graph of candidate edges (`DynamicGraph`) and the path of one instance (`ActivatedPath`).

Each stage is a DAG over its vertices v0, v1 .. vN, out. `v0` is the stage's entry (the output of
the block that changes shape), v1 .. vN are routed blocks, and `out` is the stage's output, an
aggregation without a block.

The order of a stage's edges is fixed: by target, then by source, both in vertex order. Tensors with
an edge axis and archives depend on it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import ClassVar, Literal

import networkx as nx

from dggraph.errors import GraphError
from dggraph.graph.printing import count_parts, format_graph

NodeKind = Literal["entry", "block", "out"]
EdgeKind = Literal["add", "concat", "adapter"]
Residual = Literal["keep", "lift"]

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockNode:
    """One vertex of a stage: a block of the backbone that an instance may or may not pass through.

    Example:
        >>> import dggraph
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> [node.kind for node in net.graph.nodes("layer1")]
        ['entry', 'block', 'block', 'block', 'out']
    """

    name: str
    """Unique in the graph and a valid identifier, for example `layer1_0`."""
    stage: str
    """The name of its stage."""
    kind: NodeKind
    """`entry` (v0), `block` (v1 .. vN) or `out`."""
    shape: tuple[int, ...]
    """Output shape of one instance, without the batch axis."""
    macs: int
    """MACs of one instance; 0 for `out` and for an entry that is not a block."""
    module_path: str
    """The path of the block in the backbone, for example `layer1.0`; empty for `out`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateEdge:
    """A connection that a router may open.

    Example:
        >>> import dggraph
        >>> edges = dggraph.convert("dggraph:resnet20_8").graph.edges("layer1")
        >>> [(edge.source, edge.target) for edge in edges if edge.is_static][0]
        ('layer1_in', 'layer1_0')
    """

    source: str
    target: str
    is_static: bool
    """Whether the backbone has this edge."""
    kind: EdgeKind = "add"
    """The way in which the source's features enter the target.

    `add` adds features of one shape, `concat` is an operand of a growing concat, and `adapter` pads
    or crops channels before it adds.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Facts about one stage as a whole."""

    name: str
    residual: Residual = "keep"
    """`keep`: blocks contain `x + F(x)`. `lift`: blocks are F alone, and skips are edges."""
    channel_axis: int = 1
    """The channel axis of a batched feature: 1 for NCHW, -1 for NHWC and tokens."""

    @property
    def channel_position(self) -> int:
        """The channel axis in the shape of one instance."""
        return 0 if self.channel_axis == 1 else -1


class DynamicGraph:
    """Stages of blocks and their candidate edges, in one `networkx.DiGraph`.

    Nodes carry a `BlockNode` under the key `block`, edges a `CandidateEdge` under the key `edge`. A
    graph is immutable: a pass returns a new one.

    Args:
        name: the name of the converted model, for the printed form.
        stages: the stages in the order in which the backbone runs them.
        nodes: every vertex, in vertex order within its stage.
        edges: every candidate edge, in any order.

    Raises:
        GraphError: an invariant of `verify` does not hold.

    Example:
        >>> import dggraph
        >>> graph = dggraph.convert("dggraph:resnet20_8").graph
        >>> list(graph.stages), len(graph.edges("layer1"))
        (['layer1', 'layer2', 'layer3'], 10)
    """

    notebook_drawer: ClassVar[Callable[["DynamicGraph"], str] | None] = None
    """Renders a graph as HTML for notebooks.

    `dggraph.views` sets it, since this package does not import views.
    """

    def __init__(
        self,
        name: str,
        *,
        stages: Iterable[Stage],
        nodes: Iterable[BlockNode],
        edges: Iterable[CandidateEdge],
    ) -> None:
        """Build the graph and verify it."""
        self.name = name
        self.stages: Mapping[str, Stage] = {stage.name: stage for stage in stages}
        self.nx: nx.DiGraph[str] = nx.DiGraph()
        for node in nodes:
            if node.name in self.nx:
                raise GraphError(
                    f"node {node.name!r} appears twice; names must be unique in the graph."
                )
            self.nx.add_node(node.name, block=node)
        position = {node: index for index, node in enumerate(self.nx)}
        for edge in edges:
            for end in (edge.source, edge.target):
                if end not in position:
                    raise GraphError(
                        f"edge {edge.source} -> {edge.target} names {end!r}, which is not a node of"
                        " the graph."
                    )
            if self.nx.has_edge(edge.source, edge.target):
                raise GraphError(
                    f"edge {edge.source} -> {edge.target} appears twice; keep one of them."
                )
            self.nx.add_edge(edge.source, edge.target, edge=edge)
        self._nodes: dict[str, tuple[BlockNode, ...]] = {
            stage: tuple(
                data["block"]
                for _, data in self.nx.nodes(data=True)
                if data["block"].stage == stage
            )
            for stage in self.stages
        }
        self._edges: dict[str, tuple[CandidateEdge, ...]] = {
            stage: tuple(
                sorted(
                    (
                        data["edge"]
                        for node in members
                        for *_, data in self.nx.in_edges(node.name, data=True)
                    ),
                    key=lambda edge: (position[edge.target], position[edge.source]),
                )
            )
            for stage, members in self._nodes.items()
        }
        verify(self)

    @property
    def has_lifted_stages(self) -> bool:
        """Whether the skips around the blocks of some stage are edges."""
        return any(stage.residual == "lift" for stage in self.stages.values())

    @property
    def num_blocks(self) -> int:
        """The number of routed blocks in all stages."""
        return sum(len(nodes) - 2 for nodes in self._nodes.values())

    @property
    def num_edges(self) -> int:
        """The number of candidate edges in all stages."""
        return sum(len(self.edges(stage)) for stage in self.stages)

    def nodes(self, stage: str) -> tuple[BlockNode, ...]:
        """Return the vertices of `stage`: v0, v1 .. vN, out."""
        return self._nodes[stage]

    def edges(self, stage: str) -> tuple[CandidateEdge, ...]:
        """Return the candidate edges of `stage` in their fixed order: by target, then by source."""
        return self._edges[stage]

    def incoming(self, node: str) -> tuple[CandidateEdge, ...]:
        """Return the candidate edges into `node`, by source in vertex order."""
        stage = self.nx.nodes[node]["block"].stage
        return tuple(edge for edge in self._edges[stage] if edge.target == node)

    def outgoing(self, node: str) -> tuple[CandidateEdge, ...]:
        """Return the candidate edges out of `node`, by target in vertex order.

        They are its row of the adjacency matrix.
        """
        stage = self.nx.nodes[node]["block"].stage
        return tuple(edge for edge in self._edges[stage] if edge.source == node)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DynamicGraph):
            return NotImplemented
        mine, theirs = (
            (g.name, tuple(g.stages.values()), tuple(g._nodes.values()), tuple(g._edges.values()))
            for g in (self, other)
        )
        return mine == theirs

    __hash__ = None  # type: ignore[assignment]  # graphs compare by value and never serve as keys

    def __str__(self) -> str:
        return format_graph(self)

    def _repr_html_(self) -> str:
        """Return the picture for a notebook, or the printed graph if drawing fails; never raise."""
        draw = type(self).notebook_drawer
        if draw is not None:
            with suppress(Exception):
                return draw(self)
        return f"<pre>{escape(str(self))}</pre>"

    def __repr__(self) -> str:
        return f"<DynamicGraph {self.name}: {count_parts(self)}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivatedPath:
    """The path of one instance: the weight of every candidate edge, 0 where it is inactive.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> path = dggraph.record(net, torch.rand(1, 3, 32, 32)).paths[0]
        >>> all(edge.is_static for edge in path.active_edges(net.graph))
        True
    """

    weights: Mapping[str, tuple[float, ...]]
    """For each stage, one weight per candidate edge, in the order of `DynamicGraph.edges`.

    It is the mean where an edge has several.
    """
    macs: int
    """MACs of this instance, routers and aggregation included."""
    margin: float
    """The smallest distance of any edge weight from the threshold.

    At 0 the instance may take another path in another batch.
    """
    spread: float = 0.0
    """How far the weights of one edge differ: their standard deviation, a mean over active edges.

    It is 0 where edges have one weight.
    """

    def active_edges(self, graph: DynamicGraph) -> dict[CandidateEdge, float]:
        """Return the active edges with their weights."""
        return {
            edge: weight
            for stage, weights in self.weights.items()
            for edge, weight in zip(graph.edges(stage), weights, strict=True)
            if weight != 0
        }

    def live_nodes(self, graph: DynamicGraph) -> frozenset[str]:
        """Return the nodes that the instance reached.

        They are every v0, and every node with an active edge from a live node.
        """
        entries = {
            node.name
            for stage in graph.stages
            for node in graph.nodes(stage)
            if node.kind == "entry"
        }
        return frozenset(_reach(entries, self._active_pairs(graph)))

    def useful_nodes(self, graph: DynamicGraph) -> frozenset[str]:
        """Return the live nodes whose output reaches the `out` of their stage.

        With node routers the other live nodes run in vain; with stage routers they do not run.
        """
        outs = {
            node.name for stage in graph.stages for node in graph.nodes(stage) if node.kind == "out"
        }
        return self.live_nodes(graph) & _reach(
            outs, [(target, source) for source, target in self._active_pairs(graph)]
        )

    def _active_pairs(self, graph: DynamicGraph) -> list[tuple[str, str]]:
        return [
            (edge.source, edge.target)
            for stage, weights in self.weights.items()
            for edge, weight in zip(graph.edges(stage), weights, strict=True)
            if weight != 0
        ]


def verify(graph: DynamicGraph) -> None:
    """Check every invariant of a graph. It runs between passes.

    Raises:
        GraphError: an invariant does not hold; names the first stage, node or edge that breaks it.
    """
    for name in [*graph.stages, *graph.nx]:
        if not IDENTIFIER.fullmatch(name):
            raise GraphError(
                f"{name!r} is not an identifier. Stage and node names become code: use letters,"
                " digits and _."
            )
    for name in graph.nx:
        stage = graph.nx.nodes[name]["block"].stage
        if stage not in graph.stages:
            raise GraphError(
                f"node {name!r} belongs to stage {stage!r}, which is not in the graph; add the"
                " stage, or correct the name."
            )
    for stage in graph.stages:
        members = graph.nodes(stage)
        kinds = [node.kind for node in members]
        if len(kinds) < 3 or kinds != ["entry", *["block"] * (len(kinds) - 2), "out"]:
            raise GraphError(
                f"stage {stage!r} has nodes of kinds {kinds[:20]}; it needs one entry, then"
                " blocks, then one out."
            )
        position = {node.name: index for index, node in enumerate(members)}
        shapes = {node.name: node.shape for node in members}
        for edge in graph.edges(stage):
            label = f"edge {edge.source} -> {edge.target}"
            if edge.source not in position:
                raise GraphError(f"{label} joins two stages; wire inside a stage.")
            if position[edge.source] >= position[edge.target]:
                raise GraphError(f"{label} runs backward; a source must come before its target.")
        for node in members[1:]:
            if not any(edge.is_static for edge in graph.incoming(node.name)):
                raise GraphError(
                    f"node {node.name!r} has no static edge into it, but the backbone feeds every"
                    " block; mark that edge as static."
                )
            expected = input_shape(graph, node.name)
            for edge in graph.incoming(node.name):
                if edge.kind == "add" and shapes[edge.source] != expected:
                    raise GraphError(
                        f"edge {edge.source} -> {edge.target} adds shape {shapes[edge.source]} to"
                        f" an input of shape {expected}."
                    )


def input_shape(graph: DynamicGraph, node: str) -> tuple[int, ...]:
    """Return the shape that the features summed into `node` must have, without the batch axis.

    It is the shape of the node's static source.
    """
    static = next(edge for edge in graph.incoming(node) if edge.is_static)
    shape: tuple[int, ...] = graph.nx.nodes[static.source]["block"].shape
    return shape


def _reach(start: Iterable[str], pairs: Iterable[tuple[str, str]]) -> set[str]:
    """Return `start` and all that the pairs lead to, in plain Python, which suffices here."""
    targets: dict[str, list[str]] = {}
    for source, target in pairs:
        targets.setdefault(source, []).append(target)
    reached, todo = set(start), list(start)
    while todo:
        found = [target for target in targets.get(todo.pop(), ()) if target not in reached]
        reached.update(found)
        todo.extend(found)
    return reached
