"""A line chart as SVG in the colours of the page's style sheet, readable without a script.

A value that is not a finite number leaves a gap. If there are more points than columns on the page,
the line is the mean of each of `NUM_COLUMNS` columns, in a band from the lowest to the highest
value of the column, so no peak is lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor, log10
from statistics import fmean
from typing import TypeGuard

from dggraph.views.escaping import fit, for_xml, text_width

WIDTH, HEIGHT, RIGHT, TOP, BOTTOM, LEGEND, MIN_LEFT = 360.0, 236.0, 14.0, 12.0, 42.0, 22.0, 44.0
SIZE, SAMPLE, GAP = 11.5, 16.0, 12.0
MAX_STEPS, MAX_DOTS, NUM_COLUMNS = 5, 60, 150
LOOKS = ("first", "second")
LARGEST = 1e15
"""Numbers beyond it are treated as missing."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line."""

    name: str
    points: Sequence[tuple[object, object]]
    """(x, y) from left to right."""
    is_sparse: bool = False
    """Whether each point gets a dot with its numbers, for at most `MAX_DOTS` points."""

    @property
    def segments(self) -> list[list[Point]]:
        """The runs of points between gaps; points without x are left out."""
        segments: list[list[Point]] = [[]]
        for x, y in self.points:
            if is_number(x) and is_number(y):
                segments[-1].append((x, y))
            elif is_number(x):
                segments.append([])
        return [segment for segment in segments if segment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """The area inside the axes, in pixels, and the values at its sides."""

    left: float
    top: float
    last: float
    """The x of the right side; the left side is 0."""
    low: float
    high: float

    @property
    def width(self) -> float:
        """The width in pixels."""
        return WIDTH - RIGHT - self.left

    @property
    def bottom(self) -> float:
        """The y of the lower side in pixels."""
        return HEIGHT - BOTTOM

    def across(self, x: float) -> float:
        """Return the horizontal position of the value `x`, in pixels."""
        return self.left + self.width * x / self.last

    def down(self, y: float) -> float:
        """Return the vertical position of the value `y`, in pixels."""
        return self.top + (self.bottom - self.top) * (self.high - y) / (self.high - self.low)


def draw_curves(
    title: str,
    series: Sequence[Series],
    *,
    across: str,
    last: float,
    unit: str = "",
    target: tuple[str, float] | None = None,
) -> str:
    """Return one chart, or a line of text if there are no points.

    Args:
        title: The title, for screen readers.
        series: One or two lines, distinguished by colour.
        across: The quantity of x, for example `step`.
        last: The x of the right side, so that charts in a column align; the left side is 0.
        unit: The unit of y, written after its numbers.
        target: A name and a y, drawn as a dashed line.
    """
    segments = [one.segments for one in series]
    ys = [y for several in segments for segment in several for _, y in segment]
    if not ys:
        return '<p class="note">No value yet.</p>'
    ys += [] if target is None else [target[1]]
    ticks = round_ticks(*limits(ys), is_whole=all(y == int(y) for y in ys))
    labels = [label + unit for label in tick_labels(ticks)]
    keys = [(f"line {LOOKS[place % 2]}", one.name) for place, one in enumerate(series)]
    keys += [] if target is None else [("target", target[0])]
    plot = Plot(
        left=max(MIN_LEFT, *(12 + text_width(label, SIZE) for label in labels)),
        top=TOP + (LEGEND if len(keys) > 1 else 0),
        last=last,
        low=ticks[0],
        high=ticks[-1],
    )
    ends = (
        f"{one.name} {number(several[-1][-1][1])}{unit}"
        for one, several in zip(series, segments, strict=True)
        if several
    )
    told = for_xml(f"{title} by {across}; at the end: {', '.join(ends)}")
    parts = [
        (
            f'<svg class="curves" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}"'
            f' height="{HEIGHT:g}" role="img" aria-label="{told}">'
        ),
        *(_legend(keys) if len(keys) > 1 else ()),
        *_axes(plot, across, dict(zip(ticks, labels, strict=True))),
    ]
    if target is not None:
        parts.append(
            '<path class="target"'
            f' d="M{plot.left:.1f},{plot.down(target[1]):.1f}H{WIDTH - RIGHT:g}"/>'
        )
    for place, (one, several) in enumerate(zip(series, segments, strict=True)):
        parts.extend(_line(plot, one, several, LOOKS[place % 2], across, unit))
    return "".join((*parts, "</svg>"))


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` can be drawn: it is not missing, not NaN, and at most `LARGEST`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def number(value: float) -> str:
    """Return four digits, or all digits of a large integer part."""
    return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"


def limits(ys: Sequence[float]) -> tuple[float, float]:
    """Return the range of the y axis.

    It has all values, and 0 if that takes at most half the height. A single value is in the middle.
    """
    low, high, largest = min(ys), max(ys), max(map(abs, ys))
    if largest < 1e-30:
        return 0.0, 1.0
    if high - low <= 1e-9 * largest:
        return low - largest / 2, low + largest / 2
    return (0.0 if 0 <= low <= high - low else low), high


def round_ticks(low: float, high: float, *, is_whole: bool = False) -> list[float]:
    """Return about five multiples of 1, 2 or 5 times a power of ten.

    The first is at or below `low`, and the last is at or above `high`.
    """
    power = floor(log10((high - low) / MAX_STEPS))
    steps = (size * 10.0**exponent for exponent in (power, power + 1) for size in (1, 2, 5))
    step = next(step for step in steps if high - low <= MAX_STEPS * step * (1 + 1e-9))
    step = max(step, 1.0) if is_whole else step
    places = range(floor(low / step + 1e-9), ceil(high / step - 1e-9) + 1)
    return [round(place * step, 1 - power) for place in places]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return labels with enough digits to differ.

    Very large and very small values are written as powers of ten.
    """
    step, largest = (ticks[1] - ticks[0] if len(ticks) > 1 else 1.0), max(map(abs, ticks))
    exponent = floor(log10(step) + 1e-9)
    if exponent >= -4 and largest < 1e7:
        texts = [f"{tick:,.{max(0, -exponent)}f}" for tick in ticks]
    else:
        texts = [
            "0" if tick == 0 else f"{tick:.{max(0, floor(log10(abs(tick)) + 1e-9) - exponent)}e}"
            for tick in ticks
        ]
    return [
        text.replace("e-0", "e-").replace("e+0", "e").replace("-", "\N{MINUS SIGN}")
        for text in texts
    ]


def condense(points: Iterable[Point], last: float) -> list[tuple[float, float, float, float]]:
    """Return (mean x, lowest y, mean y, highest y) for each column with points.

    A column is one of `NUM_COLUMNS` equal parts of 0 to `last`.
    """
    found = []
    for _, group in groupby(
        points, key=lambda point: min(floor(NUM_COLUMNS * point[0] / last), NUM_COLUMNS - 1)
    ):
        xs, ys = zip(*group, strict=True)
        found.append((fmean(xs), min(ys), fmean(ys), max(ys)))
    return found


def _legend(keys: Sequence[tuple[str, str]]) -> Iterator[str]:
    x, room = 4.0, (WIDTH - 4 - RIGHT) / len(keys) - SAMPLE - 5 - GAP
    for look, name in keys:
        shown = fit(name, SIZE, room)
        yield f'<path class="{look}" d="M{x:.1f},{TOP + 2:g}h{SAMPLE:g}"/>'
        yield f'<text x="{x + SAMPLE + 5:.1f}" y="{TOP + 6:g}">{for_xml(shown)}</text>'
        x += SAMPLE + 5 + text_width(shown, SIZE) + GAP


def _axes(plot: Plot, across: str, ticks: dict[float, str]) -> Iterator[str]:
    for tick, label in ticks.items():
        y = plot.down(tick)
        yield f'<path class="grid" d="M{plot.left:.1f},{y:.1f}H{WIDTH - RIGHT:g}"/>'
        yield f'<text x="{plot.left - 6:.1f}" y="{y + 4:.1f}" class="row">{label}</text>'
    yield f'<path class="axis" d="M{plot.left:.1f},{plot.bottom:g}H{WIDTH - RIGHT:g}"/>'
    steps = [tick for tick in round_ticks(0, plot.last) if tick <= plot.last]
    for tick, label in zip(steps, tick_labels(steps), strict=True):
        x = plot.across(tick)
        middle = min(x, WIDTH - 1 - text_width(label, SIZE) / 2)
        yield f'<path class="axis" d="M{x:.1f},{plot.bottom:g}v4"/>'
        yield f'<text x="{middle:.1f}" y="{plot.bottom + 17:g}" class="column">{label}</text>'
    yield (
        f'<text x="{plot.left + plot.width / 2:.1f}" y="{HEIGHT - 6:g}"'
        f' class="column">{for_xml(across)}</text>'
    )


def _line(
    plot: Plot, one: Series, segments: Sequence[Sequence[Point]], look: str, across: str, unit: str
) -> Iterator[str]:
    """Yield the line between gaps, and dots.

    Dots are on every point of a sparse series, and on single points between gaps.
    """
    for segment in segments:
        points = segment
        if len(segment) > NUM_COLUMNS:
            columns = condense(segment, plot.last)
            band = [(x, high) for x, _, _, high in columns] + [
                (x, low) for x, low, _, _ in reversed(columns)
            ]
            points = [(x, mean) for x, _, mean, _ in columns]
            yield f'<path class="band {look}" d="{_path(plot, band)}Z"/>'
        if len(points) > 1:
            yield f'<path class="line {look}" d="{_path(plot, points)}"/>'
    is_dotted = one.is_sparse and sum(map(len, segments)) <= MAX_DOTS
    for x, y in (
        point for segment in segments if is_dotted or len(segment) == 1 for point in segment
    ):
        tip = for_xml(f"{one.name}, {across} {x:,g}: {number(y)}{unit}")
        yield (
            f'<circle class="{look}" cx="{plot.across(x):.1f}" cy="{plot.down(y):.1f}"'
            f' r="2.5"><title>{tip}</title></circle>'
        )


def _path(plot: Plot, points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{plot.across(x):.1f},{plot.down(y):.1f}" for x, y in points)
