"""The content of a picture, shared by SVG, DOT, Mermaid and JSON.

It has a layout, the marks that give its colours, a heading and a legend.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from PIL import Image

from dggraph.graph.detection import Detected
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.views.annotations import (
    DEAD_INK,
    EDGE_LOOKS,
    NODE_LOOKS,
    EdgeMark,
    Look,
    Marks,
    NodeMark,
    join_marks,
    mark_difference,
    mark_graph,
    mark_path,
)
from dggraph.views.box_overlay import tell_objects
from dggraph.views.colour_scheme import Scheme
from dggraph.views.escaping import count, plural
from dggraph.views.layout import LINE, Layout, Rectangle, lay_out
from dggraph.views.stage_bars import Bar, legend_of, stage_bars

NEAR_TIE = 1e-4


class LegendEntry(NamedTuple):
    """A sample and its meaning."""

    look: Look
    text: str
    is_node: bool = False


class Thumbnail(NamedTuple):
    """An image beside its path.

    If a detector ran on it, it is larger and has the detected objects.
    """

    image: Image.Image
    detected: Detected | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The content of a picture, made by `picture_graph`, `picture_path` or `picture_difference`."""

    graph: DynamicGraph
    layout: Layout
    marks: Marks
    title: str
    facts: tuple[str, ...]
    """Lines below the title."""
    warning: str
    """A highlighted line if the margin is near the threshold; else empty."""
    legend: tuple[LegendEntry, ...]
    thumbnails: tuple[Thumbnail, ...]
    scheme: Scheme = "auto"
    """Colours of an SVG: those of the page around it, or always light or dark."""


def picture_graph(
    graph: DynamicGraph, *, title: str = "", facts: Sequence[str] = (), layout: Layout | None = None
) -> Picture:
    """Return a picture of the candidate edges."""
    layout = layout or lay_out(graph)
    texts: dict[EdgeMark, str] = {
        "static": "the backbone's own edge",
        "candidate": "candidate edge: a router may open it",
    }
    marks = mark_graph(graph)
    return Picture(
        graph=graph,
        layout=layout,
        marks=marks,
        title=title or graph.name,
        facts=(
            " · ".join(
                (
                    plural(len(graph.stages), "stage"),
                    plural(graph.num_blocks, "routed block"),
                    plural(graph.num_edges, "candidate edge"),
                )
            ),
            *facts,
        ),
        warning="",
        legend=(
            *_edge_legend(graph, marks, layout, texts),
            *(
                [LegendEntry(NODE_LOOKS["plain"], "routed block", True)]
                if layout.level != "stage"
                else []
            ),
        ),
        thumbnails=(),
    )


def picture_path(
    graph: DynamicGraph,
    path: ActivatedPath,
    *,
    title: str = "",
    facts: Sequence[str] = (),
    layout: Layout | None = None,
    thumbnail: Image.Image | None = None,
    detected: Detected | None = None,
) -> Picture:
    """Return a picture of the path of one image.

    Args:
        graph: The wired graph.
        path: The activated path.
        title: The first line, for example the name of the image.
        facts: Lines below it, for example the prediction.
        layout: From `lay_out(graph)`; pass one for all images to save time.
        thumbnail: The image.
        detected: The objects to outline on it, if a detector ran.
    """
    layout = layout or lay_out(graph)
    marks = mark_path(graph, path)
    active = sum(mark == "active" for mark in marks.edges.values())
    near = path.margin < NEAR_TIE
    lines: dict[EdgeMark, str] = {
        "active": _tell_active(layout),
        "dropped": "dropped edge",
    }
    states: dict[NodeMark, str] = {"dead": "never reached", "unused": "reached, unused"}
    legend = _edge_legend(graph, marks, layout, lines)
    legend += [
        LegendEntry(NODE_LOOKS[mark], text, True)
        for mark, text in states.items()
        if mark in marks.nodes.values()
    ]
    found = (tell_objects(detected),) if detected is not None else ()
    return Picture(
        graph=graph,
        layout=layout,
        marks=marks,
        title=title or graph.name,
        facts=(
            *found,
            *facts,
            (
                f"{active} of {len(marks.edges)} edges active · {count(path.macs)} MACs · margin"
                f" {path.margin:.3g} to the threshold"
            ),
        ),
        warning=(
            "margin near the threshold: in another batch this image may take another path"
            if near
            else ""
        ),
        legend=tuple(legend),
        thumbnails=(Thumbnail(thumbnail, detected),) if thumbnail is not None else (),
    )


def picture_difference(
    graph: DynamicGraph,
    first: ActivatedPath,
    second: ActivatedPath,
    *,
    names: tuple[str, str] = ("first", "second"),
    layout: Layout | None = None,
    thumbnails: Sequence[Image.Image] = (),
    detected: Sequence[Detected | None] = (None, None),
) -> Picture:
    """Return a picture of what only one of two images uses, and of what both use.

    Args:
        graph: The wired graph.
        first: The activated path of one image.
        second: The activated path of the other image.
        names: The names of the images.
        layout: As for `picture_path`.
        thumbnails: The images.
        detected: The objects to outline on each, if a detector ran.
    """
    layout = layout or lay_out(graph)
    marks = mark_difference(graph, first, second)
    edges = Counter(marks.edges.values())
    blocks = Counter(
        mark for name, mark in marks.nodes.items() if graph.nx.nodes[name]["block"].kind == "block"
    )
    owners: tuple[tuple[NodeMark, EdgeMark, str], ...] = (
        ("first", "first", f"only {names[0]}"),
        ("second", "second", f"only {names[1]}"),
        ("both", "both", "both"),
        ("dead", "dropped", "neither"),
    )
    legend = [
        LegendEntry(
            EDGE_LOOKS[edge],
            f"{text}: {plural(edges[edge], 'edge')}, {plural(blocks[node], 'block')}",
        )
        for node, edge, text in owners
    ]
    if layout.level == "stage":
        look = EDGE_LOOKS["first"]
        legend.append(LegendEntry(replace(look, fill=look.stroke), legend_of(marks), True))
    return Picture(
        graph=graph,
        layout=layout,
        marks=marks,
        title=f"{names[0]} and {names[1]}",
        facts=(
            f"{graph.name} · {count(first.macs)} and {count(second.macs)} MACs",
            *(
                f"{name}: {tell_objects(one)}"
                for name, one in zip(names, detected, strict=True)
                if one is not None
            ),
        ),
        warning="",
        legend=tuple(legend),
        thumbnails=tuple(Thumbnail(*both) for both in zip(thumbnails, detected, strict=False)),
    )


def mark_of(picture: Picture, box: Rectangle) -> NodeMark:
    """Return the mark of a drawn node."""
    return join_marks(picture.marks, box.card.members)


def box_look(picture: Picture, box: Rectangle) -> tuple[Look, str]:
    """Return the style of a drawn node and the colour of its text.

    Entries and outs stay white, since routers cannot skip them.
    """
    mark = mark_of(picture, box)
    look = NODE_LOOKS[mark]
    if box.card.kind in ("entry", "out") and mark in ("live", "plain"):
        look = replace(look, fill="#ffffff")
    return look, DEAD_INK if mark == "dead" else look.stroke


def bars_of(picture: Picture, box: Rectangle) -> tuple[Bar, ...]:
    """Return the bars on the card of a stage; nothing for other nodes."""
    if box.card.kind != "stage":
        return ()
    return stage_bars(picture.graph, picture.marks, box.card.name)


def lines_of(picture: Picture, box: Rectangle) -> tuple[str, ...]:
    """Return the text of a drawn node; that of a stage stands beside its bars."""
    return tuple(bar.text for bar in bars_of(picture, box)) or box.lines


def baselines(box: Rectangle, num_lines: int) -> list[float]:
    """Return the baselines of the lines of a drawn node."""
    if num_lines == 1:
        return [box.y + box.height / 2 + 3.6]
    return [box.y + 15 + LINE * index for index in range(num_lines)]


def _edge_legend(
    graph: DynamicGraph, marks: Marks, layout: Layout, texts: Mapping[EdgeMark, str]
) -> list[LegendEntry]:
    """Return legend entries for the marks of the drawn edges, and for what else needs words."""
    if layout.level == "stage":
        mark: EdgeMark = "active" if marks.weights else "static"
        look = replace(EDGE_LOOKS[mark], fill=EDGE_LOOKS[mark].stroke)
        return [LegendEntry(look, legend_of(marks), True)] if graph.stages else []
    drawn = set(marks.edges.values())
    entries = [LegendEntry(EDGE_LOOKS[mark], text) for mark, text in texts.items() if mark in drawn]
    if entries and graph.has_lifted_stages:
        entries.append(LegendEntry(entries[0].look, "lifted: a skip is an edge, too"))
    if any(panel.is_matrix for panel in layout.panels):
        swatch = replace(entries[0].look, fill=entries[0].look.stroke)
        entries.append(LegendEntry(swatch, "matrix: an edge leads from row to column", True))
    return entries


def _tell_active(layout: Layout) -> str:
    """Return what the look of an active edge means."""
    kinds = {panel.is_matrix for panel in layout.panels}
    if kinds == {True}:
        return "active edge, as dark as its weight"
    return f"active edge, as wide{' (matrix: as dark)' * (True in kinds)} as its weight"
