"""Line charts: coordinates by hand, round axes, gaps where numbers are missing, peaks of long
series kept, no name unescaped.
"""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markup import HOSTILE, Page

from dggraph.views.line_chart import (
    MAX_DOTS,
    NUM_COLUMNS,
    WIDTH,
    Series,
    condense,
    draw_curves,
    limits,
    round_ticks,
    tick_labels,
)

LEFT, RIGHT, TOP, BOTTOM = 44, 346, 12, 194
"""The sides of a plot with short labels and no legend."""


def draw(*points: tuple[object, object], last: float = 100, **others: Any) -> str:
    return draw_curves(
        "Loss", [Series(name="loss", points=points)], across="step", last=last, **others
    )


def lines(svg: str, kind: str = "line") -> list[str]:
    return re.findall(rf'<path class="{kind}[^"]*" d="([^"]*)"', svg)


def dots(svg: str) -> list[tuple[float, float]]:
    return [
        (float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="([^"]*)" cy="([^"]*)"', svg)
    ]


def test_points_stand_where_the_axes_say() -> None:
    """x from 0 to `last` over 44 to 346, y from 10 to 0 over 12 to 194."""
    svg = draw((0, 0), (50, 5), (100, 10))
    assert lines(svg) == ["M44.0,194.0L195.0,103.0L346.0,12.0"]
    rows = re.findall(r'y="([^"]*)" class="row">([^<]*)<', svg)
    assert rows == [
        (f"{BOTTOM - 182 * tick / 10 + 4:.1f}", str(tick)) for tick in (0, 2, 4, 6, 8, 10)
    ]
    columns = re.findall(r'x="([^"]*)" y="211" class="column">([^<]*)<', svg)
    assert [label for _, label in columns] == ["0", "20", "40", "60", "80", "100"]
    assert [float(x) for x, _ in columns] == [
        pytest.approx(LEFT + (RIGHT - LEFT) * tick / 100, abs=0.05) for tick in range(0, 101, 20)
    ]
    assert "Loss by step; at the end: loss 10" in svg


def test_half_a_run_leaves_the_rest_of_a_common_axis_empty() -> None:
    assert lines(draw((0, 0), (50, 10), last=200)) == ["M44.0,194.0L119.5,12.0"]


@pytest.mark.parametrize(
    "missing", [None, math.nan, math.inf, -math.inf, 1e300, 10**400, "0.5", True, [1]]
)
def test_what_is_no_number_is_a_gap(missing: object) -> None:
    svg = draw((0, 0), (20, 2), (40, missing), (60, 6), (80, 8), (90, missing), (100, 10))
    assert lines(svg) == ["M44.0,194.0L104.4,157.6", "M225.2,84.8L285.6,48.4"]
    assert dots(svg) == [(RIGHT, TOP)], "a point that no line reaches is a dot"
    assert draw((0, 0), (missing, 5), (100, 10)) == draw((0, 0), (100, 10)), (
        "one without a place is nowhere"
    )


def test_nothing_yet_says_so() -> None:
    assert draw() == draw((10, None), (20, math.nan)) == '<p class="note">No value yet.</p>'


def test_one_point_and_equal_points_stand_in_the_middle() -> None:
    assert dots(draw((100, 5))) == [(RIGHT, (TOP + BOTTOM) / 2)]
    assert lines(draw((0, 0.7), (100, 0.7)))[0].endswith("L346.0,103.0")
    assert lines(draw((0, 0), (100, 0))) == ["M44.0,194.0L346.0,194.0"], "zero stands on the axis"


def test_a_target_is_on_the_axis_and_in_the_legend() -> None:
    svg = draw((0, 100), (100, 80), unit=" %", target=("budget <70 %>", 70))
    assert re.findall(r'class="row">([^<]*)<', svg) == ["70 %", "80 %", "90 %", "100 %"]
    assert lines(svg, "target")[1].endswith(",194.0H346"), "the first is the legend's"
    assert "budget &lt;70 %&gt;</text>" in svg
    assert ">loss</text>" in svg
    assert ">loss</text>" not in draw((0, 1), (100, 2)), "one line needs no legend"


def test_sparse_series_tell_their_numbers_while_dots_have_room() -> None:
    def sparse(number: int) -> str:
        points = [(place, place / 10) for place in range(number)]
        return draw_curves(
            "Accuracy",
            [Series(name="top 1", points=points, is_sparse=True)],
            across="step",
            last=number,
            unit=" %",
        )

    assert len(dots(sparse(MAX_DOTS))) == MAX_DOTS
    assert "<title>top 1, step 21: 2.1 %</title>" in sparse(MAX_DOTS)
    assert dots(sparse(MAX_DOTS + 1)) == []


def test_long_series_are_means_in_a_band_that_keeps_each_peak() -> None:
    points = [(place, 50 * (place % 2) + (950 if place == 1234 else 0)) for place in range(10_000)]
    svg = draw(*points, last=10_000)
    (band,), (line,) = lines(svg, "band"), lines(svg)
    heights = [float(y) for _, y in (point.split(",") for point in band[1:-1].split("L"))]
    assert len(heights) == 2 * NUM_COLUMNS
    assert line.count("L") == NUM_COLUMNS - 1
    top = BOTTOM - (BOTTOM - TOP) * 950 / 1000
    assert min(heights) == pytest.approx(top, abs=0.05)
    assert heights.count(min(heights)) == 1
    means = [float(y) for _, y in (point.split(",") for point in line[1:].split("L"))]
    assert sorted(means)[NUM_COLUMNS // 2] == pytest.approx(
        BOTTOM - (BOTTOM - TOP) * 25 / 1000, abs=0.2
    )
    assert len(svg) < 12_000


def test_columns_by_hand() -> None:
    """Columns one wide: two points in the first, none in the second; the right side belongs to the
    last.
    """
    points = [
        (0.0, 1.0),
        (0.5, 3.0),
        (2.0, 5.0),
        (NUM_COLUMNS - 0.5, 7.0),
        (float(NUM_COLUMNS), 9.0),
    ]
    assert condense(points, NUM_COLUMNS) == [
        (0.25, 1, 2, 3),
        (2, 5, 5, 5),
        (NUM_COLUMNS - 0.25, 7, 8, 9),
    ]


@pytest.mark.parametrize(
    ("ys", "shown", "labels"),
    [
        ([0.9, 0.2], (0, 0.9), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([61.9, 91.07], (61.9, 91.07), ["60", "70", "80", "90", "100"]),
        ([1e-5, 3e-5], (0, 3e-5), ["0", "1e−5", "2e−5", "3e−5"]),
        ([0.3, 0.1], (0, 0.3), ["0.0", "0.1", "0.2", "0.3"]),
        ([-3, 4], (-3, 4), ["−4", "−2", "0", "2", "4"]),
        (
            [3_002_700, 50],
            (0, 3_002_700),
            ["0", "1,000,000", "2,000,000", "3,000,000", "4,000,000"],
        ),
        ([2e8, 1e8], (0, 2e8), ["0", "5e7", "1.0e8", "1.5e8", "2.0e8"]),
        (
            [1000.2, 1000.4],
            (1000.2, 1000.4),
            ["1,000.20", "1,000.25", "1,000.30", "1,000.35", "1,000.40"],
        ),
        ([-2.0], (-3, -1), ["−3.0", "−2.5", "−2.0", "−1.5", "−1.0"]),
        ([5e-324, 0], (0, 1), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_axes_are_round(ys: list[float], shown: tuple[float, float], labels: list[str]) -> None:
    assert limits(ys) == shown
    assert tick_labels(round_ticks(*limits(ys))) == labels


def test_whole_numbers_have_whole_ticks() -> None:
    assert round_ticks(0, 1, is_whole=True) == [0, 1]
    assert round_ticks(0, 3, is_whole=True) == [
        0,
        1,
        2,
        3,
    ]


@given(st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=4))
def test_any_axis_holds_its_values_with_few_different_labels(ys: list[float]) -> None:
    low, high = limits(ys)
    ticks = round_ticks(low, high)
    slack = 1e-6 * (high - low)
    assert ticks[0] - slack <= min(ys)
    assert max(ys) <= ticks[-1] + slack
    assert 2 <= len(ticks) <= 8
    assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_text(name: str) -> None:
    several = [
        Series(name=one, points=[(0, 1), (100, 2)], is_sparse=True) for one in (name, "other")
    ]
    svg = draw_curves(name, several, across=name, last=100, target=(name, 1.5))
    page = Page(svg)
    assert {tag for tag, _ in page.tags} == {"svg", "path", "text", "circle", "title"}
    allowed = {
        "class",
        "viewbox",
        "width",
        "height",
        "role",
        "aria-label",
        "d",
        "x",
        "y",
        "cx",
        "cy",
        "r",
    }
    assert {key for _, attrs in page.tags for key in attrs} <= allowed
    assert "\x1b" not in svg
    assert "\u202e" not in svg
    legend = [float(x) for x in re.findall(r'<text x="([^"]*)" y="18"', svg)]
    assert len(legend) == 3
    assert max(legend) < WIDTH
