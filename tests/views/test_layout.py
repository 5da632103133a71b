"""Layouts: nothing overlaps, what is static and next runs straight, big graphs become stages, ops
are listed.
"""

import pytest
from drawn import node_marks, path_of, stages, texts

from dggraph.views.collapse import MAX_CARDS
from dggraph.views.layout import PAGE, lay_out
from dggraph.views.picture import picture_graph, picture_path
from dggraph.views.svg_picture import write_svg


@pytest.mark.parametrize("depths", [(1,), (2, 3, 5, 2), (2, 7, 35, 2), (1,) * 30, (100,)])
def test_nothing_overlaps_and_everything_is_inside(depths: tuple[int, ...]) -> None:
    layout = lay_out(stages(*depths))
    for panel in layout.panels:
        assert panel.x >= 0
        assert panel.x + panel.width <= layout.width
        assert panel.y + panel.height <= layout.height
        for left, right in zip(panel.boxes, panel.boxes[1:], strict=False):
            assert left.x + left.width < right.x
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
    assert "2 used" in texts(svg)
    assert "0 used" in texts(svg)
    assert "73 blocks" in texts(svg)


def test_ops_are_listed_in_their_blocks() -> None:
    (panel,) = lay_out(stages(1), level="op", ops={"a_1": ("Conv2d", "<lambda>", "add")}).panels
    assert [box.lines for box in panel.boxes] == [
        ("a.0", "1k"),
        ("a.1", "1k", "Conv2d", "<lambda>", "add"),
        ("out",),
    ]
    boxes = {box.card.name: box for box in panel.boxes}
    assert boxes["a_1"].height >= 12 * 5
