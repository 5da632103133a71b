"""Accuracy over MACs as SVG: a point per method, and a line through static networks of all sizes.

Points get letters, since their names would lie over each other; letters in one place are pushed
apart and keep a thin line to their point.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dggraph.views.escaping import for_xml
from dggraph.views.line_chart import round_ticks, tick_labels

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560.0, 320.0, 52.0, 34.0, 14.0, 44.0
LINE = 13.0
"""Height of a letter, in pixels."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One method."""

    letter: str
    name: str
    x: float
    y: float
    spread: float
    """Half of the bar through the point, in the unit of y."""
    is_on_curve: bool
    """Whether the line goes through it."""


@dataclass(frozen=True, slots=True)
class _Axes:
    xs: Sequence[float]
    ys: Sequence[float]

    def across(self, x: float) -> float:
        low, high = self.xs[0], self.xs[-1]
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - low) / (high - low)

    def down(self, y: float) -> float:
        low, high = self.ys[0], self.ys[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)


def draw_scatter(points: Sequence[Point], *, across: str, up: str) -> str:
    """Return the picture, or a line of text if there are no points.

    Args:
        points: at most 52.
        across: name and unit of x.
        up: name and unit of y.
    """
    if not points:
        return '<p class="note">No run is finished yet.</p>'
    lows, highs = [p.y - p.spread for p in points], [p.y + p.spread for p in points]
    axes = _Axes(
        _ticks(min(p.x for p in points), max(p.x for p in points)), _ticks(min(lows), max(highs))
    )
    told = "; ".join(f"{p.name} {p.y:.2f} at {p.x:.3g}" for p in points)
    curve = sorted((p for p in points if p.is_on_curve), key=lambda p: p.x)
    return "".join(
        (
            f'<svg class="curves scatter" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img"'
            f' aria-label="{for_xml(f"{up} over {across}: {told}")}">',
            *_grid(axes, across),
            *(
                f'<path class="target" d="M{axes.across(a.x):.1f},{axes.down(a.y):.1f}'
                f'L{axes.across(b.x):.1f},{axes.down(b.y):.1f}"/>'
                for a, b in pairwise(curve)
            ),
            *(part for point in points for part in _mark(axes, point)),
            *_letters(axes, points),
            "</svg>",
        )
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return round ticks around all values; a single value gets a range of its own."""
    if high - low <= 1e-9 * max(abs(high), 1e-30):
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    return round_ticks(low, high)


def _grid(axes: _Axes, across: str) -> Iterator[str]:
    for tick, label in zip(axes.ys, tick_labels(axes.ys), strict=True):
        y = axes.down(tick)
        yield f'<path class="grid" d="M{LEFT:g},{y:.1f}H{WIDTH - RIGHT:g}"/>'
        yield f'<text x="{LEFT - 6:g}" y="{y + 4:.1f}" class="row">{label}</text>'
    bottom = HEIGHT - BOTTOM
    yield f'<path class="axis" d="M{LEFT:g},{bottom:g}H{WIDTH - RIGHT:g}"/>'
    for tick, label in zip(axes.xs, tick_labels(axes.xs), strict=True):
        x = axes.across(tick)
        yield f'<path class="axis" d="M{x:.1f},{bottom:g}v4"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 17:g}" class="column">{label}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle:g}" y="{HEIGHT - 6:g}" class="column">{for_xml(across)}</text>'


def _mark(axes: _Axes, point: Point) -> Iterator[str]:
    look = "second" if point.is_on_curve else "first"
    x = axes.across(point.x)
    top, bottom = axes.down(point.y + point.spread), axes.down(point.y - point.spread)
    tip = for_xml(f"{point.name}: {point.y:.2f} ± {point.spread:.2f} at {point.x:.4g}")
    yield f'<path class="line {look}" d="M{x:.1f},{top:.1f}V{bottom:.1f}"/>'
    yield (
        f'<circle class="{look}" cx="{x:.1f}" cy="{axes.down(point.y):.1f}" r="3.5">'
        f"<title>{tip}</title></circle>"
    )


def _letters(axes: _Axes, points: Sequence[Point]) -> Iterator[str]:
    """Yield letters right of their points; those that would overlap are moved down."""
    taken: list[tuple[float, float]] = []
    places = [(axes.across(one.x), axes.down(one.y)) for one in points]
    for point in sorted(points, key=lambda one: axes.down(one.y)):
        x, y = axes.across(point.x), axes.down(point.y)
        beside = (c for c, p in places if 0 <= c - x < 24 and abs(p - y) < 40)
        place, column = y, max(beside) + 9
        while any(abs(column - c) < 16 and abs(place - p) < LINE for c, p in taken):
            place += 1
        if place > HEIGHT - BOTTOM - 4:  # no room below: a second column
            column, place = column + 16, y
            while any(abs(column - c) < 16 and abs(place - p) < LINE for c, p in taken):
                place -= 1
        taken.append((column, place))
        if abs(place - y) > 3 or column > x + 10:
            yield (f'<path class="lead" d="M{x + 4:.1f},{y:.1f}L{column - 2:.1f},{place:.1f}"/>')
        yield f'<text x="{column:.1f}" y="{place + 4:.1f}">{for_xml(point.letter)}</text>'


def letters(count: int) -> list[str]:
    """Return as many different short names."""
    return [LETTERS[place] if place < len(LETTERS) else f"{place + 1}" for place in range(count)]
