"""Layouts: nothing overlaps, what is static and next runs straight, big graphs become stages, ops
are listed.
"""

import re

import pytest
from drawn import node_marks, path_of, places, stages, texts

from dggraph.views.annotations import mark_difference, mark_graph, mark_path
from dggraph.views.captions import make_frame
from dggraph.views.collapse import MAX_CARDS
from dggraph.views.dot_picture import write_dot
from dggraph.views.drawing import render
from dggraph.views.layout import LEAST_PAGE, PAGE, lay_out
from dggraph.views.picture import picture_graph, picture_path
from dggraph.views.stage_bars import BAR, THICK, Bar, place_bar, stage_bars
from dggraph.views.stage_diagram import draw_diagram
from dggraph.views.svg_picture import write_svg


@pytest.mark.parametrize("page", [PAGE, 390.0, LEAST_PAGE])
@pytest.mark.parametrize("depths", [(1,), (2, 3, 5, 2), (2, 7, 35, 2), (1,) * 30, (40,)])
def test_nothing_overlaps_and_everything_is_inside(depths: tuple[int, ...], page: float) -> None:
    layout = lay_out(stages(*depths), page=page)
    assert layout.width <= page
    for panel in layout.panels:
        assert panel.x >= 0
        assert panel.x + panel.width <= layout.width
        assert panel.y + panel.height <= layout.height
        for left, right in zip(panel.boxes, panel.boxes[1:], strict=False):
            is_below = left.y + left.height <= right.y
            assert left.x + left.width < right.x or (panel.is_matrix and is_below)
        assert all(
            panel.x < box.x and box.x + box.width < panel.x + panel.width for box in panel.boxes
        )
        assert all(
            panel.y < box.y and box.y + box.height < panel.y + panel.height for box in panel.boxes
        )
        for curve in panel.curves:
            top = 0.25 * curve.points[0][1] + 0.75 * curve.points[1][1]
            assert top >= panel.y + 30, "an arc runs through the heading"
    for one in layout.panels:
        for other in layout.panels:
            apart = one.x + one.width < other.x or other.x + other.width < one.x
            assert (
                one is other
                or apart
                or one.y + one.height < other.y
                or other.y + other.height < one.y
            )


def test_neighbours_are_joined_straight_and_others_by_arcs() -> None:
    (panel,) = lay_out(stages(3)).panels
    straight = {
        (curve.edge.source, curve.edge.target) for curve in panel.curves if curve.is_straight
    }
    assert straight == {("a_0", "a_1"), ("a_1", "a_2"), ("a_2", "a_3"), ("a_3", "a_out")}
    heights = {
        (c.edge.source, c.edge.target): c.points[0][1] - c.points[1][1]
        for c in panel.curves
        if not c.is_straight
    }
    assert heights["a_0", "a_out"] > heights["a_0", "a_3"] > heights["a_0", "a_2"] > 0


def test_a_stage_of_36_blocks_fits_a_page_with_every_block_named() -> None:
    layout = lay_out(stages(35))
    (panel,) = layout.panels
    assert layout.level == "block"
    assert layout.width <= PAGE
    assert panel.is_matrix
    assert len(panel.curves) == 37 * 36 // 2
    assert [box.lines for box in panel.boxes] == [*((str(index),) for index in range(36)), ("out",)]
    assert "35 blocks of 1k MACs, a.1 to a.35" in panel.heading[1]


def test_long_names_in_a_long_stage_become_numbers() -> None:
    (panel,) = lay_out(stages(40, module_path="a_name_too_long_for_a_narrow_box")).panels
    assert [box.lines[0] for box in panel.boxes][:3] == ["v0", "v1", "v2"]
    assert "a_name_too_long_for_a_narrow_box" in write_svg(
        picture_graph(stages(40, module_path="a_name_too_long_for_a_narrow_box"))
    )


def test_big_graphs_are_drawn_by_stage() -> None:
    limit = stages(MAX_CARDS // 2 - 2, MAX_CARDS // 2 - 2)
    assert limit.nx.number_of_nodes() == MAX_CARDS
    assert lay_out(limit).level == "block"
    graph = stages(MAX_CARDS // 2 - 2, MAX_CARDS // 2 - 1)
    assert lay_out(graph).level == "stage"
    assert lay_out(graph, level="block").level == "block"
    svg = write_svg(
        picture_path(
            graph,
            path_of(graph, {"a_0 a_3": 1.0, "a_3 a_9": 1.0, "a_9 a_out": 1.0, "a_0 a_5": 1.0}),
        )
    )
    assert node_marks(svg) == {"a": "live", "b": "dead"}
    assert {"2 of 73 blocks", "4 of 2775 edges", "3 % of MACs"} <= set(texts(svg))
    assert {"0 of 74 blocks", "0 of 2850 edges", "0 % of MACs"} <= set(texts(svg))


def test_bars_of_stages_are_as_long_as_what_is_in_use() -> None:
    """Out of the stage for paths, out of all stages for a graph; two paths share a bar."""
    graph = stages(2, 6)
    first = path_of(graph, {"a_0 a_1": 1.0, "a_1 a_out": 1.0, "b_0 b_out": 1.0})
    second = path_of(graph, {"a_0 a_2": 1.0, "a_2 a_out": 1.0, "b_0 b_3": 1.0, "b_3 b_out": 1.0})
    blocks, edges, macs = stage_bars(graph, mark_path(graph, first), "a")
    assert blocks == ("1 of 2 blocks", (("active", 0.5),))
    assert edges == ("2 of 6 edges", (("active", 2 / 6),))
    assert macs == ("50 % of MACs", (("active", 0.5),))
    blocks, edges, macs = stage_bars(graph, mark_difference(graph, first, second), "b")
    assert blocks == ("0, 1 of 6 blocks", (("first", 0.0), ("second", 1 / 6)))
    assert edges == ("1, 2 of 28 edges", (("first", 1 / 28), ("second", 2 / 28)))
    assert macs == ("0, 17 % of MACs", (("first", 0.0), ("second", 1 / 6)))
    blocks, edges, macs = stage_bars(graph, mark_graph(graph), "a")
    assert blocks == ("2 blocks", (("static", 0.25),))
    assert edges == ("6 edges", (("static", 6 / 34),))
    assert macs == ("2k MACs", (("static", 0.25),))
    (track, first_part, second_part) = place_bar(
        Bar("", (("first", 0.25), ("second", 1.0))), right=100.0, baseline=20.0
    )
    assert (track.x + track.width, track.width) == (100.0, BAR)
    assert (first_part.width, second_part.width) == (BAR / 4, BAR)
    assert first_part.y + first_part.height == second_part.y


def test_bars_are_drawn_in_files_and_pages() -> None:
    graph = stages(MAX_CARDS // 2 - 2, MAX_CARDS // 2 - 1)
    path = path_of(graph, {"a_0 a_3": 1.0, "a_3 a_out": 1.0})
    layout = lay_out(graph)
    svg, page = write_svg(picture_path(graph, path)), draw_diagram(graph, path, layout)
    source = str(render(graph, path).source)
    assert source.count("more") == svg.count(f'height="{THICK:g}"') == 2 * 3 * 2
    assert page.count('class="strip active"') == page.count('class="ground"') == 2 * 3
    assert "bar: share of the stage" in svg


def test_ops_are_listed_in_their_blocks() -> None:
    (panel,) = lay_out(stages(1), level="op", ops={"a_1": ("Conv2d", "<lambda>", "add")}).panels
    assert [box.lines for box in panel.boxes] == [
        ("a.0", "1k"),
        ("a.1", "1k", "Conv2d", "<lambda>", "add"),
        ("out",),
    ]
    boxes = {box.card.name: box for box in panel.boxes}
    assert boxes["a_1"].height >= 12 * 5


@pytest.mark.parametrize("page", [PAGE, LEAST_PAGE])
def test_a_matrix_in_a_file_has_a_cell_for_every_edge(page: float) -> None:
    """Row = source and column = target, in SVG and DOT; active cells are darker for more weight."""
    graph = stages(20)
    path = path_of(graph, {"a_0 a_3": 1.5, "a_3 a_out": 0.15})
    layout = lay_out(graph, page=page)
    svg = write_svg(picture_path(graph, path, layout=layout))
    (panel,) = layout.panels
    boxes = {box.card.name: box for box in panel.boxes}
    found = places(svg)
    for edge in graph.edges("a"):
        x, y = (round(place, 1) for place in (boxes[edge.target].x, boxes[edge.source].y))
        assert found[f"{edge.source} {edge.target}"].startswith(f"M{x:g},{y:g}H")
    shades = dict(re.findall(r'data-edge="([^"]+)" fill="#0b6e8a" fill-opacity="([^"]+)"', svg))
    assert shades == {"a_0 a_3": "1", "a_3 a_out": "0.4"}
    source = str(write_dot(picture_path(graph, path, layout=layout)).source)
    assert source.count("class=active") == 2
    assert source.count("class=dropped") == len(graph.edges("a")) - 2
    assert " -> " not in source
    assert "matrix: an edge leads from row to column" in svg
    assert ("On the diagonal: the blocks, in order." in texts(svg)) == (page == PAGE)
    names = [text for text in texts(svg) if text.isdigit()]
    assert names == ([str(index) for index in range(21)] if page == PAGE else ["5", "10", "15"])


def test_headings_and_facts_wrap_on_a_narrow_page() -> None:
    graph = stages(12, name="net")
    fact = "a prediction of many words 0.91 · 0.812 of the static network's MACs"
    picture = picture_path(
        graph,
        path_of(graph, {"a_0 a_out": 1.0}, margin=1e-6),
        facts=[fact],
        layout=lay_out(graph, page=LEAST_PAGE),
    )
    shown = texts(write_svg(picture))
    assert not any("…" in text for text in shown)
    joined = " ".join(shown)
    assert fact in joined
    assert "in another batch this image may take another path" in joined
    assert make_frame(picture).width <= LEAST_PAGE
