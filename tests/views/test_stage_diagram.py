"""Diagrams in pages: stages of many edges are matrices, and two paths are told apart."""

import re
from xml.etree import ElementTree

from drawn import path_of, stages

from dggraph.graph.ir import DynamicGraph, Stage
from dggraph.views.layout import MAX_ARCS, lay_out
from dggraph.views.picture import picture_path
from dggraph.views.stage_diagram import define_curves, draw_diagram, draw_difference_diagram
from dggraph.views.svg_picture import write_svg


def cells(graph_depth: int) -> dict[str, tuple[float, float, float]]:
    """Left, top and side of the cell of each edge, from the left top of the matrix."""
    layout = lay_out(stages(graph_depth))
    first = layout.panels[0].boxes[0]
    return {
        key: (float(x) - first.x, float(y) - first.y, float(right) - float(x))
        for key, x, y, right in re.findall(
            r'id="(e0-\d+)" d="M([\d.]+),([\d.]+)H([\d.]+)V', define_curves(layout)
        )
    }


def test_a_stage_of_many_edges_is_a_matrix() -> None:
    """Arcs up to 150 edges; above, each edge has its cell: row = source, column = target."""
    few, many = stages(15), stages(35)
    assert len(few.edges("a")) == 136 <= MAX_ARCS < len(many.edges("a"))
    assert cells(15) == {}
    places = {node.name: index for index, node in enumerate(many.nodes("a"))}
    found = cells(35)
    for place, edge in enumerate(many.edges("a")):
        x, y, side = found[f"e0-{place}"]
        assert (x, y) == (side * places[edge.target], side * places[edge.source])


def test_a_matrix_shows_active_edges_and_the_state_of_blocks() -> None:
    graph = stages(35)
    path = path_of(graph, {"a_0 a_3": 1.5, "a_3 a_out": 0.15, "a_0 a_7": 0.7})
    drawn = draw_diagram(graph, path, lay_out(graph))
    ElementTree.fromstring(drawn)
    edges = [f"{edge.source} {edge.target}" for edge in graph.edges("a")]
    shades = {
        edges[int(place)]: float(shade)
        for shade, inside in re.findall(r'<g fill-opacity="([\d.]+)">(.*?)</g>', drawn)
        for place in re.findall(r'href="#e0-(\d+)"', inside)
    }
    assert shades == {"a_0 a_3": 1.0, "a_3 a_out": 0.4, "a_0 a_7": 0.6}
    marks = dict(re.findall(r'<g class="node (\w+)" data-node="n0-(\d+)"', drawn))
    assert drawn.count('class="node dead"') == 33
    assert re.search(r'class="node unused" data-node="n0-7"', drawn), marks
    assert re.search(r'class="node live" data-node="n0-3"', drawn), marks
    assert "3 of 666 edges active" in drawn
    assert "never reached: a.1, a.2" in drawn, "the label says what the colours say"


def test_a_difference_says_whose_edges_and_blocks_they_are() -> None:
    for depth in (3, 35):
        graph = stages(depth)
        first = path_of(graph, {"a_0 a_1": 1.0, "a_1 a_out": 1.0, "a_0 a_out": 1.0})
        second = path_of(graph, {"a_0 a_2": 1.0, "a_2 a_out": 1.0, "a_0 a_out": 1.0})
        drawn = draw_difference_diagram(graph, first, second, lay_out(graph))
        ElementTree.fromstring(drawn)
        assert "2 edges only in the first; 2 only in the second; 1 in both" in drawn
        groups = re.findall(r'<g class="edges (?:cells )?(\w+)[ \w]*">((?:<g .*?</g>)+)</g>', drawn)
        numbers = {mark: inside.count("<use ") for mark, inside in groups}
        assert numbers == {"first": 2, "second": 2, "both": 1}
        assert 'class="node first" data-node="n0-1"' in drawn
        assert 'class="node second" data-node="n0-2"' in drawn
        assert "only in the first: a.1; only in the second: a.2" in drawn


def test_what_is_reached_but_unused_differs_without_colours() -> None:
    """A line runs through it, in files and pages, and through nothing else."""
    graph = stages(3)
    path = path_of(graph, {"a_0 a_1": 1.0, "a_0 a_out": 1.0})
    svg = write_svg(picture_path(graph, path))
    assert svg.count('stroke-opacity="0.55"') == 2, "the block, and its sample in the legend"
    drawn = draw_diagram(graph, path, lay_out(graph))
    struck = re.findall(r'<g class="node (\w+)"[^>]*><rect [^>]*/><path ', drawn)
    assert struck == ["unused"]


def test_legends_say_what_margin_and_lifted_mean() -> None:
    kept = stages(3)
    lifted = DynamicGraph(
        "net",
        stages=[Stage(name="a", residual="lift")],
        nodes=kept.nodes("a"),
        edges=kept.edges("a"),
    )
    path = path_of(kept, {"a_0 a_out": 1.0})
    for graph, is_lifted in ((kept, False), (lifted, True)):
        svg = write_svg(picture_path(graph, path))
        assert "margin 0.2 to the threshold" in svg
        assert ("lifted: a skip is an edge, too" in svg) == is_lifted
