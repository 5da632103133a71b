"""A histogram of MACs per image, as SVG in the colours of the page's style sheet."""

from collections import Counter
from collections.abc import Sequence

from dggraph.graph.atlas import BINS_PER_STATIC

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 480.0, 220.0, 46.0, 22.0, 38.0, 22.0
MAX_BARS = 40
GROUPS = (1, 2, 4, 10, 20, 40, 100, 200)


def group_bins(histogram: Sequence[tuple[int, int]]) -> tuple[int, dict[int, int]]:
    """Join bins so that at most `MAX_BARS` remain.

    Returns:
        The number of bins in a joined one, and {joined bin: images}, from the first to the last.
    """
    first, last = histogram[0][0], histogram[-1][0]
    size = next(
        (size for size in GROUPS if last // size - first // size < MAX_BARS),
        (last - first) // MAX_BARS + 1,
    )
    counts: Counter[int] = Counter()
    for place, number in histogram:
        counts[place // size] += number
    return size, {place: counts[place] for place in range(first // size, last // size + 1)}


def draw_histogram(histogram: Sequence[tuple[int, int]], mean: float) -> str:
    """Draw bars over the MACs ratio.

    Args:
        histogram: (bin, images) in ascending order, see `Atlas.histogram`.
        mean: Mean MACs ratio of all images.
    """
    size, bars = group_bins(histogram)
    percent = 100 * size / BINS_PER_STATIC
    first, number, most = min(bars), len(bars), max(bars.values())
    pad = max(1.0, (10 - number) / 2)
    width = (WIDTH - LEFT - RIGHT) / (number + 2 * pad)
    height = HEIGHT - BOTTOM - TOP

    def across(share: float) -> float:
        return LEFT + width * (share * 100 / percent - first + pad)

    parts = [
        f'<svg class="histogram" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}"'
        f' height="{HEIGHT:g}" role="img" aria-label="Histogram of MACs: mean {100 * mean:.1f} % of'
        ' the static network">'
    ]
    for tick in _ticks(most):
        y = TOP + height * (1 - tick / most)
        parts.append(f'<path class="grid" d="M{LEFT:g},{y:.1f}H{WIDTH - RIGHT:g}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{y + 4:.1f}" class="row">{tick:,}</text>')
    for place, count in bars.items():
        if not count:
            continue
        told = (
            f"{percent * place:g} to {percent * (place + 1):g} %: {count:,}"
            f" image{'s' * (count != 1)}"
        )
        x, tall = LEFT + width * (place - first + pad), height * count / most
        spot = (
            f'x="{x + 0.5:.1f}" y="{TOP + height - tall:.1f}" width="{max(width - 1, 1):.1f}"'
            f' height="{tall:.1f}"'
        )
        parts.append(f'<rect class="bar" {spot}><title>{told}</title></rect>')
    parts.append(f'<path class="axis" d="M{LEFT:g},{TOP + height:g}H{WIDTH - RIGHT:g}"/>')
    step = next(
        step
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**6)
        if percent * (number + 2 * pad) / step <= 9
    )
    low, high = percent * (first - pad), percent * (first + number + pad)
    parts.extend(
        f'<text x="{across(tick / 100):.1f}" y="{HEIGHT - BOTTOM + 15:g}" class="column">{tick}'
        " %</text>"
        for tick in range(int(-(-low // step)) * step, int(high) + 1, step)
    )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4:g}" class="column">share of the'
        " static MACs</text>"
    )
    parts.append(f'<path class="mean" d="M{across(mean):.1f},{TOP - 4:g}V{TOP + height:g}"/>')
    side = "start" if across(mean) < WIDTH / 2 else "end"
    shift = 5 if side == "start" else -5
    parts.append(
        f'<text x="{across(mean) + shift:.1f}" y="{TOP - 7:g}" class="told {side}">mean'
        f" {100 * mean:.1f} %</text>"
    )
    return "".join((*parts, "</svg>"))


def _ticks(most: int) -> list[int]:
    """Return round numbers up to `most`, at most five."""
    step = next(
        step * 10**power
        for power in range(20)
        for step in (1, 2, 5)
        if most <= 5 * step * 10**power
    )
    return list(range(step, most + 1, step))
