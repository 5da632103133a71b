"""A path in an HTML page: one small SVG per stage, in the colours of the page's style sheet.

Positions come from `layout`. Curves are written once per page (`define_curves`), and the diagram of
each image refers to them, so the size of a page with a hundred images stays small.
"""

from collections.abc import Iterator

from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.views.annotations import EDGE_LOOKS, EdgeMark, NodeMark, edge_width
from dggraph.views.escaping import for_xml, plural
from dggraph.views.layout import DETAIL, LABEL, Layout, Panel, Rectangle
from dggraph.views.matrix_diagram import draw_cells, draw_diagonal
from dggraph.views.picture import (
    Picture,
    bars_of,
    baselines,
    lines_of,
    mark_of,
    picture_difference,
    picture_path,
)
from dggraph.views.stage_bars import place_bar

PAD, WIDE = 12.0, 480.0
"""Margin of a diagram, and the width from which it scrolls sideways on a narrow screen."""
MAX_TOLD_EDGES = 150
"""Diagrams with more candidate edges do not show the weight of each edge."""


def define_curves(layout: Layout) -> str:
    """Return the curves of every candidate edge, needed once in a page with diagrams."""
    groups = []
    for number, panel in enumerate(layout.panels):
        curves = (
            f'<path id="e{number}-{place}" d="{curve}"/>'
            for place, curve in enumerate(one.svg for one in panel.curves)
        )
        groups.append(f'<g id="s{number}">{"".join(curves)}</g>')
    return (
        '<svg class="defs" width="0" height="0"'
        f' aria-hidden="true"><defs>{"".join(groups)}</defs></svg>'
    )


def draw_diagram(graph: DynamicGraph, path: ActivatedPath, layout: Layout) -> str:
    """Draw the path of one image: active edges as wide as their weight, dead and unused nodes.

    Args:
        graph: The wired graph.
        path: The activated path.
        layout: From `lay_out(graph)`; the page must have its curves.
    """
    return _draw(picture_path(graph, path, layout=layout), layout)


def draw_difference_diagram(
    graph: DynamicGraph, first: ActivatedPath, second: ActivatedPath, layout: Layout
) -> str:
    """Draw what only the path of one of two images uses, and what both use.

    Args:
        graph: The wired graph.
        first: The path of one image.
        second: The path of the other.
        layout: As for `draw_diagram`.
    """
    return _draw(picture_difference(graph, first, second, layout=layout), layout)


def _draw(picture: Picture, layout: Layout) -> str:
    panels = (_panel(picture, number, panel) for number, panel in enumerate(layout.panels))
    return f'<div class="path">{"".join(panels)}</div>'


def _panel(picture: Picture, number: int, panel: Panel) -> str:
    told = _describe(picture, panel)
    first, last = panel.boxes[0], panel.boxes[-1]
    if panel.is_matrix:
        width = height = last.x + last.width - first.x + 2
        left, top = first.x - 1, first.y - 1
        parts = [*draw_cells(picture, number, panel), *draw_diagonal(picture, number, panel)]
        caption = f"{panel.stage} <small>{for_xml('; '.join(_count_edges(picture, panel)))}</small>"
        look = "panel matrix"
    else:
        rise = max(
            (-0.75 * min(y - first.y for _, y in curve.points) for curve in panel.curves),
            default=0.0,
        )
        top, height = first.y - rise - 8, rise + 8 + panel.y + panel.height - first.y
        left, width = first.x - PAD, last.x + last.width - first.x + 2 * PAD
        boxes = (_box(picture, one, f"n{number}-{place}") for place, one in enumerate(panel.boxes))
        parts = [*_edges(picture, number, panel), *boxes]
        caption, look = for_xml(panel.stage), "panel"
    box = f"{left:g} {top:g} {width:g} {height:g}"
    kind = f'class="{look} wide" tabindex="0"' if width > WIDE else f'class="{look}"'
    return (
        f'<figure {kind}><figcaption>{caption}</figcaption><svg viewBox="{box}" width="{width:g}"'
        f' height="{height:g}" role="img" aria-label="{for_xml(f"{panel.stage}: {told}")}">'
        f'<use href="#s{number}" class="dropped"/>{"".join(parts)}</svg></figure>'
    )


def _count_edges(picture: Picture, panel: Panel) -> list[str]:
    """Return for example `7 of 10 edges active`, or how many edges are whose in a difference."""
    marks = picture.marks.edges
    edges = [marks[edge.source, edge.target] for edge in picture.graph.edges(panel.stage)]
    if _is_difference(picture):
        first, second = edges.count("first"), edges.count("second")
        texts = [f"{plural(first, 'edge')} only in the first", f"{second} only in the second"]
        return [*texts, f"{edges.count('both')} in both"]
    return [f"{edges.count('active')} of {plural(len(edges), 'edge')} active"]


def _is_difference(picture: Picture) -> bool:
    return any(len(weights) == 2 for weights in picture.marks.weights.values())


def _describe(picture: Picture, panel: Panel) -> str:
    """Return for example `7 of 10 edges active; never reached: layer1.2`."""
    texts = _count_edges(picture, panel)
    states: dict[NodeMark, str] = {"dead": "never reached", "unused": "reached, unused"}
    if _is_difference(picture):
        states = {"first": "only in the first", "second": "only in the second"}
        states["dead"] = "in neither"
    for mark, text in states.items():
        names = [
            node.module_path or node.name
            for node in picture.graph.nodes(panel.stage)
            if node.kind == "block" and picture.marks.nodes[node.name] == mark
        ]
        texts += [f"{text}: {', '.join(names)}"] if names else []
    return "; ".join(texts)


def _edges(picture: Picture, number: int, panel: Panel) -> Iterator[str]:
    """Yield the edges that are not dropped, by mark and width.

    In a large graph, widths are rounded to one digit and weights are left out, to save space.
    """
    marks, is_large = picture.marks, len(picture.marks.edges) > MAX_TOLD_EDGES
    groups: dict[EdgeMark, dict[float, list[str]]] = {mark: {} for mark in EDGE_LOOKS}
    for place, curve in enumerate(panel.curves):
        ends = (curve.edge.source, curve.edge.target)
        mark = marks.edges[ends]
        if mark != "dropped":
            width = edge_width(mark, marks.weights[ends]) * curve.scale
            told = " and ".join(f"{weight:.3f}" for weight in marks.weights[ends])
            title = f"<title>{ends[0]} to {ends[1]}: {told}</title></use>"
            groups[mark].setdefault(round(width, 1 if is_large else 2), []).append(
                f'<use href="#e{number}-{place}"{"/>" if is_large else f">{title}"}'
            )
    dense = " dense" * any(curve.scale < 1 for curve in panel.curves)
    for mark, widths in groups.items():
        inner = (
            f'<g stroke-width="{width:g}">{"".join(edges)}</g>' for width, edges in widths.items()
        )
        if widths:
            yield f'<g class="edges {mark}{dense}">{"".join(inner)}</g>'


def _box(picture: Picture, box: Rectangle, key: str) -> str:
    mark, lines = mark_of(picture, box), lines_of(picture, box)
    kind = "end" if box.card.kind in ("entry", "out") and mark == "live" else mark
    radius = 9 if box.card.kind == "out" else 4
    place = f'x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}"'
    told = f' data-node="{key}"' if box.card.kind == "block" else ""
    parts = [f'<g class="node {kind}"{told}><rect {place} rx="{radius}"/>']
    if mark == "unused":
        strike = f"M{box.x:g},{box.y + box.height:g}l{box.width:g},{-box.height:g}"
        parts.append(f'<path d="{strike}"/>')
    bars = bars_of(picture, box)
    x, anchor = (box.x + 8, "start") if bars else (box.x + box.width / 2, "middle")
    places = baselines(box, len(lines))
    for index, (line, y) in enumerate(zip(lines, places, strict=True)):
        is_first = index == 0 and len(lines) > 1 and not bars
        looks = (
            f'class="{"name" if index == 0 or bars else "detail"} {anchor}"'
            f' font-size="{LABEL if is_first else DETAIL:g}"'
        )
        parts.append(f'<text x="{x:g}" y="{y:g}" {looks}>{for_xml(line)}</text>')
    for bar, y in zip(bars, places, strict=False):
        for strip in place_bar(bar, box.x + box.width - 8, y):
            place = f'x="{strip.x:g}" y="{strip.y:g}" width="{strip.width:g}"'
            look = "ground" if strip.mark is None else f"strip {strip.mark}"
            parts.append(f'<rect class="{look}" {place} height="{strip.height:g}"/>')
    return "".join((*parts, "</g>"))
