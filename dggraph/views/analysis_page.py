"""The page of an analysis: what the routing of a trained network is worth."""

import math
from collections.abc import Callable, Iterator, Sequence

from dggraph.graph.analysis import Analysis, Change, EdgeFacts
from dggraph.views.escaping import plural
from dggraph.views.html_page import percent, write_page
from dggraph.views.line_chart import Series, draw_curves
from dggraph.views.scatter import Point, draw_scatter

NONE = "–"
MINUS = "\N{MINUS SIGN}"
UNIT = "\N{NO-BREAK SPACE}%"
SWAP_NAMES = {
    "mean": "the mean of all images",
    "class mean": "the mean of its class",
    "same class": "that of another image of its class",
    "other": "that of another image",
    "static": "the static network's",
}
EDGE_HEADS = (
    "kind", "mean weight", "open", "accuracy, points", "KL, nats", "moved, mean", "moved, most",
)  # fmt: skip
WEAK = 0.3
"""A rank correlation below it says that two quantities have little to do with each other."""
FAR = 2.0
"""A composite gain of more than this, or less than its inverse, is pointed out."""


def write_analysis(found: Analysis, images: str) -> str:
    """Return a complete HTML document without scripts or external resources.

    Args:
        found: the numbers.
        images: the set that they were measured on, for the title.
    """
    by_cost = sorted(found.edges, key=lambda edge: (-edge.divergence, edge.source, edge.target))
    return write_page(
        "analysis.html",
        f"Analysis: {found.name} on {images}",
        found=found,
        images=images,
        tiles=list(_tiles(found)),
        findings=list(_findings(found)),
        warnings=list(_warnings(found)),
        swaps=[(name, _change_cells(found.swapped[key])) for key, name in SWAP_NAMES.items()],
        scatters=[
            _scatter(
                found.edges, "Accuracy lost, points", lambda edge: -100 * edge.closed.difference
            ),
            _scatter(found.edges, "KL from its own outputs, nats", lambda edge: edge.divergence),
        ],
        edge_heads=EDGE_HEADS,
        edges=[(_name(edge), _edge_cells(edge)) for edge in by_cost],
        threshold_chart=_threshold_chart(found),
        macs_chart=_macs_chart(found),
        thresholds=[
            (
                f"{one.threshold:.4g}{' (its own)' if one.is_own else ''}",
                [percent(one.accuracy), percent(one.kept)],
            )
            for one in found.thresholds
        ],
        class_heads=["images", "within", "most similar to", "similarity"],
        classes=[
            (
                one.name,
                [
                    f"{one.num_images:,}",
                    _number(one.within, ".2f"),
                    one.nearest or NONE,
                    _number(one.nearest_similarity, ".2f"),
                ],
            )
            for one in found.classes
        ],
        groupings=list(found.chance),
        chance=[percent(share) for share in found.chance.values()],
        variances=[
            (
                _name(edge),
                [
                    f"{edge.deviation:.3f}",
                    *([f"{edge.spread:.3f}"] if _has_parts(found) else []),
                    *map(_share, edge.explained.values()),
                ],
            )
            for edge in found.edges
        ],
        variance_heads=["deviation", *(["within an image"] if _has_parts(found) else [])],
        gain_heads=["gain", "static gain", "norm growth", "static norm growth"],
        gains=[
            (one.stage, _gain_cells(one.gain, one.static_gain, one.growth, one.static_growth))
            for one in found.gains
        ],
        gain_products=_gain_cells(
            math.prod(one.gain for one in found.gains),
            math.prod(one.static_gain for one in found.gains),
            math.prod(one.growth for one in found.gains),
            math.prod(one.static_growth for one in found.gains),
        ),
    )


def _tiles(found: Analysis) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of each number at the top."""
    yield "accuracy", percent(found.accuracy), f"top 1, of {found.num_images:,} images"
    yield "MACs ratio", percent(found.kept), "of the static network's"
    for key in ("mean", "other"):
        change = found.swapped[key]
        yield (
            f"with {'the mean' if key == 'mean' else 'another image’s'} adjacency",
            f"{_points(change.difference)}",
            f"points of accuracy, ± {100 * change.half_width:.1f}",
        )
    if found.within is not None and found.between is not None:
        yield (
            "similarity",
            f"{found.within:.2f}",
            f"of two images of a class; {_number(found.between, '.2f')} of different classes",
        )
    yield "composite gain", f"{found.composite_gain:.2f}", "over all stages, static network: 1"


def _findings(found: Analysis) -> Iterator[str]:
    """Yield what the numbers say, a sentence or two each."""
    other = found.swapped["other"]
    if _is_sure(other) and other.difference < 0:
        yield (
            f"The network depends on which image its adjacency came from: another image's costs"
            f" {_cost(other)}. That is not yet a gain: compare with static edges trained by the"
            " same recipe."
        )
    else:
        yield (
            f"Another image's adjacency changes the accuracy by {_points(other.difference)} points"
            f" (± {100 * other.half_width:.1f}), so choosing edges for each image is worth nothing"
            " that these images could show."
        )
    mean = found.swapped["mean"]
    if not (_is_sure(mean) and mean.difference < 0):
        yield (
            f"With one fixed adjacency, the mean, the accuracy changes by"
            f" {_points(mean.difference)} points (± {100 * mean.half_width:.1f}): these images"
            " cannot tell it from each image's own."
        )
    if _has_parts(found):
        yield (
            f"Edges have several weights (granularity {found.granularity}). Other adjacencies"
            " replace all of them, and closing an edge closes all of them. Where this page gives"
            " one number for the weight of an edge, it is their mean, and for how far it moved"
            " their largest."
        )
    if found.rank_correlation is not None:
        tells = "says little about" if found.rank_correlation < WEAK else "goes with"
        yield (
            f"An edge's mean weight {tells} what closing it costs: rank correlation"
            f" {_number(found.rank_correlation, '.2f')}."
        )
    free = [edge for edge in found.edges if edge.open_fraction > 0 and not _costs(edge)]
    if free:
        yield (
            f"Closing {plural(len(free), 'edge')} of {len(found.edges)} costs nothing that these"
            " images could show, one at a time."
        )


def _warnings(found: Analysis) -> Iterator[str]:
    still = found.never_moved
    if len(still) == len(found.edges):
        yield (
            "No gate has moved from its start for any image: the routers are untrained, or learn"
            " nothing."
        )
    elif still:
        names = ", ".join(_name(edge) for edge in still[:6])
        more = f" and {len(still) - 6} more" if len(still) > 6 else ""
        yield f"{plural(len(still), 'gate')} never moved from the start: {names}{more}."
    if all(edge.deviation < 1e-6 for edge in found.edges):
        yield "Every image gets the same adjacency."
    if not 1 / FAR <= found.composite_gain <= FAR:
        yield (
            f"The composite gain is {found.composite_gain:.2g}: over all stages, paths scale"
            " features by so many times what they do in the static network. Far from 1, training"
            " may become unstable."
        )


def _has_parts(found: Analysis) -> bool:
    return found.granularity != "edge"


def _is_sure(change: Change) -> bool:
    return abs(change.difference) > change.half_width


def _costs(edge: EdgeFacts) -> bool:
    return edge.closed.difference < 0 and _is_sure(edge.closed)


def _cost(change: Change) -> str:
    return f"{-100 * change.difference:.1f} points of accuracy (± {100 * change.half_width:.1f})"


def _points(share: float) -> str:
    """Return a difference of accuracies in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", MINUS) if share else "0.0"


def _change_cells(change: Change) -> list[str]:
    return [percent(change.accuracy), _with_interval(change)]


def _with_interval(change: Change) -> str:
    return f"{_points(change.difference)} ± {100 * change.half_width:.1f}"


def _name(edge: EdgeFacts) -> str:
    return f"{edge.source} → {edge.target}"


def _edge_cells(edge: EdgeFacts) -> list[str]:
    return [
        "backbone" if edge.is_static else "candidate",
        f"{edge.mean_weight:.3f}",
        percent(edge.open_fraction, digits=0),
        *(_worth(edge) if edge.open_fraction > 0 else (NONE, NONE)),
        f"{edge.mean_move:.3f}",
        f"{edge.largest_move:.3f}" if edge.has_moved else "never moved",
    ]


def _worth(edge: EdgeFacts) -> tuple[str, str]:
    lost = _with_interval(edge.closed)
    return lost, "< 0.001" if edge.divergence < 1e-3 else f"{edge.divergence:.3f}"


def _gain_cells(*gains: float) -> list[str]:
    return [f"{gain:.3g}" for gain in gains]


def _number(value: float | None, form: str) -> str:
    if value is None:
        return NONE
    shown = format(value, form)
    return shown.replace("-", MINUS) if float(shown) else format(0.0, form)


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value, digits=0)


def _scatter(
    edges: Sequence[EdgeFacts], title: str, cost: Callable[[EdgeFacts], float]
) -> tuple[str, str]:
    """Return a title and a chart with a dot for each edge that is ever open."""
    opened = [edge for edge in edges if edge.open_fraction > 0]
    kinds = {"backbone’s edge": True, "candidate": False}
    series = [
        Series(
            name=name,
            # a gap behind every point, so that no line joins them
            points=[
                point
                for edge in opened
                if edge.is_static == is_static
                for point in (
                    (edge.mean_weight, cost(edge)),
                    (edge.mean_weight, None),
                )
            ],
        )
        for name, is_static in kinds.items()
    ]
    last = 1.05 * max((edge.mean_weight for edge in opened), default=1.0)
    drawn = [one for one in series if one.points]
    return title, draw_curves(title, drawn, across="mean weight", last=last)


def _threshold_chart(found: Analysis) -> str:
    points = [(one.threshold, 100 * one.accuracy) for one in found.thresholds]
    kept = [(one.threshold, 100 * one.kept) for one in found.thresholds]
    return draw_curves(
        "Accuracy and MACs ratio",
        [
            Series(name="accuracy", points=points, is_sparse=True),
            Series(name="MACs ratio", points=kept, is_sparse=True),
        ],
        across="threshold",
        last=max(one.threshold for one in found.thresholds),
        unit=UNIT,
    )


def _macs_chart(found: Analysis) -> str:
    """Return accuracy over MACs: a point per threshold, with the standard error of its images."""
    points = [
        Point(
            letter=f"{one.threshold:.3g}",
            name=f"threshold {one.threshold:.3g}",
            x=one.kept,
            y=100 * one.accuracy,
            spread=100 * math.sqrt(one.accuracy * (1 - one.accuracy) / found.num_images),
            is_on_curve=True,
        )
        for one in found.thresholds
    ]
    return draw_scatter(points, across="MACs ratio", up="accuracy, %")
