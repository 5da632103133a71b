"""Accuracy over MACs: points at their places, letters that do not lie over each other."""

import re

from markup import HOSTILE, Page

from dggraph.views.scatter import BOTTOM, HEIGHT, LETTERS, Point, draw_scatter, letters


def point(letter: str, x: float, y: float, *, name: str = "m", on: bool = False) -> Point:
    return Point(letter=letter, name=name, x=x, y=y, spread=0.5, is_on_curve=on)


def test_higher_and_further_right_is_drawn_so() -> None:
    page = Page(
        draw_scatter([point("A", 1, 50), point("B", 2, 60)], across="M MACs", up="accuracy")
    )
    first, second = ((float(c["cx"]), float(c["cy"])) for c in page.all("circle"))
    assert first[0] < second[0]
    assert first[1] > second[1]
    assert {"A", "B"} <= set(page.texts)


def test_the_line_joins_static_networks_from_small_to_large() -> None:
    points = [point("A", 3, 52, on=True), point("B", 1, 50, on=True), point("C", 2, 60)]
    page = Page(draw_scatter(points, across="x", up="y"))
    (line,) = page.all("path", "target")
    a, b, c = page.all("circle")
    assert line["d"] == f"M{b['cx']},{b['cy']}L{a['cx']},{a['cy']}"
    assert "second" in a["class"]
    assert "first" in c["class"]


def test_letters_of_points_in_one_place_are_apart() -> None:
    names = letters(12)
    points = [point(letter, 10 + index / 1000, 80) for index, letter in enumerate(names)]
    svg = draw_scatter(points, across="x", up="y")
    found = {
        letter: (float(x), float(y))
        for x, y, letter in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(\w)</text>', svg)
    }
    assert set(found) == set(names)
    places = list(found.values())
    assert all(
        abs(a[0] - b[0]) > 10 or abs(a[1] - b[1]) > 11
        for index, a in enumerate(places)
        for b in places[:index]
    )
    assert all(0 < y < HEIGHT - BOTTOM + 4 for _, y in places)


def test_one_point_and_none_are_drawn() -> None:
    assert len(Page(draw_scatter([point("A", 5, 0)], across="x", up="y")).all("circle")) == 1
    assert "No run is finished" in draw_scatter([], across="x", up="y")


def test_hostile_names_stay_text() -> None:
    points = [point(letters(9)[i], i, i, name=name) for i, name in enumerate(HOSTILE)]
    page = Page(draw_scatter(points, across=HOSTILE[0], up=HOSTILE[1]))
    assert {tag for tag, _ in page.tags} == {"svg", "path", "text", "circle", "title"}


def test_there_are_names_for_any_number() -> None:
    assert letters(3) == ["A", "B", "C"]
    many = letters(len(LETTERS) + 3)
    assert len(set(many)) == len(many)
