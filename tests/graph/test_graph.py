"""The graph, its wirings and its JSON, without torch."""

import itertools
import json
import re
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise
from typing import Any
from unittest.mock import ANY

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dggraph.errors import ArchiveError, GraphError, WiringError
from dggraph.graph.ir import (
    ActivatedPath,
    BlockNode,
    CandidateEdge,
    DynamicGraph,
    Stage,
)
from dggraph.graph.printing import format_graph
from dggraph.graph.schema import from_json, to_json
from dggraph.graph.wiring import WIRINGS, entry, is_complete, parse_wiring, unite, window, wire


def static_chain(
    num_blocks: int, name: str = "s", shape: tuple[int, ...] = (4, 8, 8)
) -> DynamicGraph:
    names = [f"{name}_{i}" for i in range(num_blocks + 1)] + [f"{name}_out"]
    kinds = ["entry", *["block"] * num_blocks, "out"]
    return DynamicGraph(
        "net",
        stages=[Stage(name=name)],
        nodes=[
            BlockNode(name=n, stage=name, kind=k, shape=shape, macs=10, module_path=n)
            for n, k in zip(names, kinds, strict=True)
        ],
        edges=[CandidateEdge(source=a, target=b, is_static=True) for a, b in pairwise(names)],
    )


def test_printed_form() -> None:
    assert format_graph(wire(static_chain(2), "complete")) == (
        "net: 1 stages, 2 routed blocks, 6 candidate edges\n"
        "s: keep, 6 edges\n"
        "  v0 s_0 4x8x8 10\n"
        "  v1 s_1 4x8x8 10 <- v0\n"
        "  v2 s_2 4x8x8 10 <- v0? v1\n"
        "  out s_out 4x8x8 10 <- v0? v1? v2"
    )


def test_a_graph_tells_its_size_and_whether_it_is_lifted() -> None:
    graph = wire(static_chain(2), "complete")
    assert repr(graph) == "<DynamicGraph net: 1 stages, 2 routed blocks, 6 candidate edges>"
    assert (graph.num_blocks, graph.num_edges) == (2, 6)
    assert not graph.has_lifted_stages
    stages = [replace(stage, residual="lift") for stage in graph.stages.values()]
    lifted = DynamicGraph("net", stages=stages, nodes=graph.nodes("s"), edges=graph.edges("s"))
    assert lifted.has_lifted_stages


def test_a_graph_leaves_other_types_to_say_whether_they_are_equal() -> None:
    graph = static_chain(2)
    assert graph == ANY
    assert graph == static_chain(2)
    assert graph not in (static_chain(3), "net")


def test_channels_of_one_instance() -> None:
    assert Stage(name="s").channel_position == 0
    assert Stage(name="s", channel_axis=-1).channel_position == -1


@pytest.mark.parametrize(
    "value",
    [
        static_chain(2).nodes("s")[0],
        static_chain(2).edges("s")[0],
        static_chain(2).stages["s"],
        ActivatedPath(weights={"s": (1.0,)}, macs=10, margin=0.5),
    ],
)
def test_values_of_a_graph_never_change(value: Any) -> None:
    first = fields(value)[0].name
    with pytest.raises(FrozenInstanceError, match=first):
        setattr(value, first, "another")
    with pytest.raises(TypeError, match="positional"):
        type(value)("another")


@pytest.mark.parametrize(("num_blocks", "edges"), [(2, 6), (3, 10), (5, 21)])
def test_complete_has_every_pair(num_blocks: int, edges: int) -> None:
    graph = wire(static_chain(num_blocks), "complete")
    names = [node.name for node in graph.nodes("s")]
    found = [(edge.source, edge.target) for edge in graph.edges("s")]
    assert len(found) == edges
    assert set(found) == set(itertools.combinations(names, 2))


def test_edges_are_ordered_by_target_then_source() -> None:
    graph = wire(static_chain(2), "complete")
    assert [(e.source, e.target) for e in graph.edges("s")] == [
        ("s_0", "s_1"),
        ("s_0", "s_2"),
        ("s_1", "s_2"),
        ("s_0", "s_out"),
        ("s_1", "s_out"),
        ("s_2", "s_out"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "complete",
        "chain",
        "window(2)",
        "entry",
        "dilated(2, 2)",
        "window(2)+entry",
        "watts_strogatz(4, 0.5, 1)",
        "erdos_renyi(0.3, 1)",
        "barabasi_albert(2)",
    ],
)
@pytest.mark.parametrize("num_blocks", [1, 2, 7])
def test_every_wiring_keeps_the_static_edges_and_runs_forward(text: str, num_blocks: int) -> None:
    static = static_chain(num_blocks)
    graph = wire(static, text)
    assert set(static.edges("s")) <= set(graph.edges("s"))
    assert graph == wire(static, text)
    assert nx.is_directed_acyclic_graph(graph.nx)
    if text == "chain":
        assert graph == static
    if text == "window(2)":
        order = [node.name for node in graph.nodes("s")]
        assert {(order.index(e.source), order.index(e.target)) for e in graph.edges("s")} == {
            (i, j) for j in range(num_blocks + 2) for i in range(max(0, j - 2), j)
        }


@pytest.mark.parametrize(
    ("text", "added"),
    [
        ("window(2)", ["02", "13", "24", "35", "46"]),
        ("entry", ["02", "03", "04", "05", "06"]),
        ("window(2)+entry", ["02", "03", "13", "04", "24", "05", "35", "06", "46"]),
        ("dilated(2, 1)", ["03", "14", "05", "25", "16", "36"]),
        ("dilated(1, 2)", ["02", "04", "14", "24", "06", "16", "26", "36", "46"]),
        ("dilated(2, 2)", ["14", "16", "36"]),
        ("dilated(3, 2)", ["04", "26"]),
        ("dilated(2, 3)", ["03", "16", "36"]),
        ("chain+entry", ["02", "03", "04", "05", "06"]),
        ("window(1)", []),
        ("erdos_renyi(0)", []),
        ("watts_strogatz(2, 0.0)", ["06"]),  # rings, whose ends are neighbours
        ("watts_strogatz(4, 0)", ["02", "13", "24", "05", "35", "06", "16", "46"]),
    ],
)
def test_sparse_wirings_by_hand(text: str, added: list[str]) -> None:
    """Five blocks, so that v0 is 0 and `out` is 6. The chain 01, 12, ... is in every wiring."""
    graph = wire(static_chain(5), text)
    order = [node.name for node in graph.nodes("s")]
    assert [
        f"{order.index(e.source)}{order.index(e.target)}"
        for e in graph.edges("s")
        if not e.is_static
    ] == added


def test_entry_by_itself_has_the_edge_of_the_chain_too() -> None:
    assert list(entry()(4)) == [(0, 1), (0, 2), (0, 3)]


def test_edges_into_and_out_of_a_node_are_its_column_and_row() -> None:
    graph = wire(static_chain(2), "complete")
    assert [edge.target for edge in graph.outgoing("s_0")] == ["s_1", "s_2", "s_out"]
    assert [edge.source for edge in graph.incoming("s_2")] == ["s_0", "s_1"]
    assert graph.outgoing("s_out") == graph.incoming("s_0") == ()


def test_wirings_united_by_name_and_in_python() -> None:
    static = static_chain(5)
    assert wire(static, "window(2)+entry") == wire(static, unite(window(2), entry()))
    assert wire(static, " window( 2 ) +entry") == wire(static, "entry+window(2)+entry")
    assert wire(static, "dilated(1, 1)") == wire(static, "complete")
    assert is_complete("window(2)+complete")
    assert not is_complete("window(2)+entry")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("erdos_renyi(1)", "complete"),
        ("watts_strogatz(9, 0)", "complete"),  # more neighbours than there are
        ("barabasi_albert(9)", "entry"),  # a star
        ("erdos_renyi(0.5)", "erdos_renyi(0.5, 0)"),
        ("watts_strogatz(2, 1)", "watts_strogatz(2, 1.0, 0)"),
        ("barabasi_albert(1)", "barabasi_albert(1, 0)"),
    ],
)
def test_random_wirings_at_their_limits(text: str, same: str) -> None:
    """On three blocks; the seed is 0 unless another is given."""
    assert wire(static_chain(3), text) == wire(static_chain(3), same)


def test_every_registered_wiring_is_tried_above() -> None:
    assert set(WIRINGS) == {
        "complete",
        "chain",
        "window",
        "entry",
        "dilated",
        "watts_strogatz",
        "erdos_renyi",
        "barabasi_albert",
    }


def test_own_edges_as_list_and_as_networkx_graph() -> None:
    edges = [("s_0", "s_2"), ("s_1", "s_out")]
    assert wire(static_chain(2), edges) == wire(static_chain(2), nx.DiGraph(edges))
    assert [
        (e.source, e.target) for e in wire(static_chain(2), edges).edges("s") if not e.is_static
    ] == edges


@pytest.mark.parametrize(
    ("wiring", "message"),
    [
        ([("s_2", "s_1")], "s_2 -> s_1 runs backward"),
        ([("s_1", "s_1")], "s_1 -> s_1 runs backward"),
        ([("s_1", "s_uot")], "Did you mean 's_out'"),
        ("windwo(2)", "Did you mean 'window'"),
        ("window(0)", "reach must be at least 1"),
        ("window('a')", "arguments must be numbers"),
        ("window(__import__('os'))", "window"),
        ("window(2)+entri", "Did you mean 'entry'"),
        ("window(2)+", "neither a name"),
        ("window(2)+entry(1)", "'entry' takes no numbers"),
        ("dilated(2)", "dilated(k, p)"),
        ("dilated(0, 1)", "needs k >= 1 and p >= 1"),
        ("dilated(2, 1.5)", "1.5 must be a whole number"),
        ("erdos_renyi(2)", "0 <= p <= 1"),
        ("erdos_renyi(-0.1)", "0 <= p <= 1"),
        ("watts_strogatz(1, 0.5)", "needs k >= 2"),
        ("watts_strogatz(2, 1.1)", "0 <= p <= 1"),
        ("watts_strogatz(2, -0.1)", "0 <= p <= 1"),
        ("barabasi_albert(0)", "needs m >= 1"),
        ("dilated(1, 0)", "needs k >= 1 and p >= 1"),
    ],
)
def test_impossible_wirings(wiring: object, message: str) -> None:
    with pytest.raises(WiringError, match=re.escape(message)):
        wire(static_chain(2), wiring)  # type: ignore[arg-type]


def test_edges_across_stages_and_shapes() -> None:
    first, second = static_chain(1, "a"), static_chain(1, "b", (8, 4, 4))
    both = DynamicGraph(
        "net",
        stages=[*first.stages.values(), *second.stages.values()],
        nodes=[*first.nodes("a"), *second.nodes("b")],
        edges=[*first.edges("a"), *second.edges("b")],
    )
    with pytest.raises(WiringError, match="a_0 -> b_1 joins stages a and b"):
        wire(both, [("a_0", "b_1")])


def test_channels_that_change_get_an_adapter() -> None:
    nodes = [("v", "entry", (4, 8, 8)), ("w", "block", (6, 8, 8)), ("o", "out", (6, 8, 8))]
    graph = DynamicGraph(
        "net",
        stages=[Stage(name="s")],
        nodes=[
            BlockNode(name=n, stage="s", kind=k, shape=shape, macs=1, module_path=n)
            for n, k, shape in nodes
        ],  # type: ignore[arg-type]
        edges=[
            CandidateEdge(source="v", target="w", is_static=True),
            CandidateEdge(source="w", target="o", is_static=True),
        ],
    )
    assert [e.kind for e in wire(graph, "complete").edges("s")] == ["add", "adapter", "add"]


def test_maps_of_other_sizes_are_not_added() -> None:
    graph = static_chain(2)
    nodes = [
        replace(node, shape=(4, 4, 4)) if node.kind != "entry" else node
        for node in graph.nodes("s")
    ]
    shrinking = DynamicGraph(
        "net", stages=graph.stages.values(), nodes=nodes, edges=graph.edges("s")
    )
    with pytest.raises(WiringError, match=r"s_0 -> s_2 joins shapes \(4, 8, 8\) and \(4, 4, 4\)"):
        wire(shrinking, "complete")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "s_9"}, "names 's_9'"),
        ({"source": "s_2", "target": "s_1"}, "runs backward"),
        ({"source": "s_1", "target": "s_1"}, "runs backward"),
        ({"source": "s_0", "target": "s_1"}, "appears twice"),
    ],
)
def test_verify_names_the_edge(change: dict[str, str], message: str) -> None:
    graph = static_chain(2)
    extra = CandidateEdge(**({"source": "s_0", "target": "s_2", "is_static": False} | change))  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=message):
        DynamicGraph(
            "net",
            stages=graph.stages.values(),
            nodes=graph.nodes("s"),
            edges=[*graph.edges("s"), extra],
        )


def test_live_and_useful_nodes_by_hand() -> None:
    """v0 -> v1 active, v2 fed by nobody, out fed by v0: v1 is computed but unused, v2 is dead."""
    graph = wire(static_chain(2), "complete")
    path = ActivatedPath(weights={"s": (1.0, 0.0, 0.0, 0.7, 0.0, 0.0)}, macs=5, margin=0.2)
    assert path.live_nodes(graph) == {"s_0", "s_1", "s_out"}
    assert path.useful_nodes(graph) == {"s_0", "s_out"}
    assert {(e.source, e.target): w for e, w in path.active_edges(graph).items()} == {
        ("s_0", "s_1"): 1.0,
        ("s_0", "s_out"): 0.7,
    }


@st.composite
def graphs(draw: st.DrawFn) -> DynamicGraph:
    base = static_chain(draw(st.integers(1, 6)))
    names = [node.name for node in base.nodes("s")]
    pairs = [(a, b) for j, b in enumerate(names) for a in names[:j]]
    return wire(base, draw(st.lists(st.sampled_from(pairs), unique=True)))


@given(graphs())
@settings(max_examples=300, deadline=None)
def test_json_round_trip(graph: DynamicGraph) -> None:
    assert from_json(to_json(graph)) == graph
    assert to_json(from_json(to_json(graph))) == to_json(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "upgrade dggraph"),
        ({"schema_version": 0}, "not a dggraph archive"),
        ({"extra": 1}, "extra"),
        ({"name": 3}, "name"),
        ({"nodes": []}, "invalid graph"),
    ],
)
def test_foreign_json(change: dict[str, object], message: str) -> None:
    document = json.loads(to_json(static_chain(1))) | change
    with pytest.raises(ArchiveError, match=message):
        from_json(json.dumps(document))


def test_code_in_names_is_refused() -> None:
    text = to_json(static_chain(1)).replace("s_1", "s_1); import os; (")
    with pytest.raises(ArchiveError, match="not an identifier"):
        from_json(text)


def test_parse_wiring_takes_numbers_alone() -> None:
    assert list(parse_wiring("window(1)")(3)) == [(0, 1), (1, 2)]


@given(st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_live_and_useful_nodes_are_those_networkx_reaches(num_blocks: int, random: Any) -> None:
    graph = wire(static_chain(num_blocks), "complete")
    weights = tuple(float(random.random() < 0.4) for _ in graph.edges("s"))
    path = ActivatedPath(weights={"s": weights}, macs=0, margin=0.0)
    active = nx.DiGraph([(edge.source, edge.target) for edge in path.active_edges(graph)])
    active.add_nodes_from(graph.nx)
    live = {"s_0"} | nx.descendants(active, "s_0")
    assert path.live_nodes(graph) == live
    assert path.useful_nodes(graph) == live & ({"s_out"} | nx.ancestors(active, "s_out"))
