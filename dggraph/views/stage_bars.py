"""Bars on the card of a stage: how many of its blocks, edges and MACs are in use."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from dggraph.graph.ir import DynamicGraph
from dggraph.views.annotations import EdgeMark, Marks
from dggraph.views.escaping import count, plural

LEGEND_OF_PATH = "bar: share of the stage's blocks, edges and MACs that this path uses"
LEGEND_OF_DIFFERENCE = "bars: share of the stage that each path uses, the first one above"
LEGEND_OF_GRAPH = "bar: share of all blocks, edges and MACs inside stages"
BAR, THICK = 52.0, 8.0
"""Length of a full bar, and its height."""


class Bar(NamedTuple):
    """A line of a card: a text, and one or two parts of a bar."""

    text: str
    shares: tuple[tuple[EdgeMark, float], ...]
    """The mark that colours a part, and its length, from 0 to 1."""


class Strip(NamedTuple):
    """A rectangle of a bar: the track if it has no mark."""

    mark: EdgeMark | None
    x: float
    y: float
    width: float
    height: float


def stage_bars(graph: DynamicGraph, marks: Marks, stage: str) -> tuple[Bar, Bar, Bar]:
    """Return the bars of a stage.

    For paths they say what is in use, out of the stage. A block is in use if its output reaches
    `out`. For a graph alone they say how large the stage is, out of all stages.
    """
    blocks, edges = _blocks(graph, stage), _edges(graph, stage)
    macs = sum(graph.nx.nodes[name]["block"].macs for name in blocks)
    if not marks.weights:
        own = (len(blocks), len(edges), macs)
        sums = [0, 0, 0]
        for one in graph.stages:
            names = _blocks(graph, one)
            sums[0] += len(names)
            sums[1] += len(_edges(graph, one))
            sums[2] += sum(graph.nx.nodes[name]["block"].macs for name in names)
        texts = (plural(len(blocks), "block"), plural(len(edges), "edge"), f"{count(macs)} MACs")
        first, second, third = (
            Bar(text, (("static", _share(part, whole)),))
            for text, part, whole in zip(texts, own, sums, strict=True)
        )
        return first, second, third
    owners: tuple[EdgeMark, ...] = ("active",)
    if any(len(weights) == 2 for weights in marks.weights.values()):
        owners = ("first", "second")
    used = [[name for name in blocks if marks.nodes[name] in _uses(owner)] for owner in owners]
    opened = [[ends for ends in edges if marks.edges[ends] in (owner, "both")] for owner in owners]
    spent = [sum(graph.nx.nodes[name]["block"].macs for name in names) for names in used]
    return (
        _bar(owners, [len(names) for names in used], len(blocks), "block"),
        _bar(owners, [len(ends) for ends in opened], len(edges), "edge"),
        Bar(
            f"{', '.join(f'{100 * _share(one, macs):.0f}' for one in spent)} % of MACs",
            tuple((owner, _share(one, macs)) for owner, one in zip(owners, spent, strict=True)),
        ),
    )


def place_bar(bar: Bar, right: float, baseline: float) -> Iterator[Strip]:
    """Yield the track and the parts of a bar that ends at `right`, beside text on `baseline`."""
    left, top = right - BAR, baseline - THICK
    yield Strip(None, left, top, BAR, THICK)
    height = THICK / len(bar.shares)
    for row, (mark, share) in enumerate(bar.shares):
        yield Strip(mark, left, top + height * row, round(BAR * share, 1), height)


def legend_of(marks: Marks) -> str:
    """Return what the bars mean."""
    if not marks.weights:
        return LEGEND_OF_GRAPH
    is_difference = any(len(weights) == 2 for weights in marks.weights.values())
    return LEGEND_OF_DIFFERENCE if is_difference else LEGEND_OF_PATH


def _bar(owners: tuple[EdgeMark, ...], parts: list[int], whole: int, noun: str) -> Bar:
    return Bar(
        f"{', '.join(map(str, parts))} of {plural(whole, noun)}",
        tuple((owner, _share(part, whole)) for owner, part in zip(owners, parts, strict=True)),
    )


def _uses(owner: EdgeMark) -> Collection[str]:
    return ("live",) if owner == "active" else (owner, "both")


def _blocks(graph: DynamicGraph, stage: str) -> list[str]:
    return [node.name for node in graph.nodes(stage) if node.kind == "block"]


def _edges(graph: DynamicGraph, stage: str) -> list[tuple[str, str]]:
    return [(edge.source, edge.target) for edge in graph.edges(stage)]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
