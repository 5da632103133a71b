"""A path through a stage of many blocks, as a matrix: arcs would cover each other there.

Blocks stand on the diagonal, in order. Right of a block are the edges out of it, above it those
into it, so the upper triangle is the adjacency matrix: row = source, column = target.
"""

from collections.abc import Iterator

from dggraph.graph.ir import DynamicGraph
from dggraph.views.annotations import EDGE_LOOKS, EdgeMark
from dggraph.views.escaping import fit, for_xml, text_width
from dggraph.views.layout import Panel
from dggraph.views.picture import Picture, mark_of

MAX_ARCS = 150
"""Stages with more candidate edges are drawn as a matrix."""
SIDE, LEAST_SIDE, WHOLE = 16.0, 8.0, 640.0
"""Pixels of a cell: 16, or less where the whole would be wider than 640, but at least 8."""
LABEL = 7.5
FULL = 1.5
"""A weight of this size, or larger, has the full colour."""
KEY = (
    "On the diagonal: the blocks, in order.",
    "Right of a block: edges out of it.",
    "Above a block: edges into it.",
    "Darker: a larger weight.",
)


def is_matrix(panel: Panel) -> bool:
    """Return whether a stage is drawn as a matrix."""
    return len(panel.curves) > MAX_ARCS


def matrix_size(panel: Panel) -> float:
    """Return the width of the matrix, which is its height too."""
    return _side(panel) * len(panel.boxes)


def cell_curves(panel: Panel) -> list[str]:
    """Return the outline of each candidate edge's cell, as SVG paths in the order of edges."""
    side = _side(panel)
    place = {box.card.name: index for index, box in enumerate(panel.boxes)}
    return [
        f"M{side * place[curve.edge.target]:g},{side * place[curve.edge.source]:g}"
        f"h{side:g}v{side:g}h-{side:g}z"
        for curve in panel.curves
    ]


def draw_cells(picture: Picture, number: int, panel: Panel) -> Iterator[str]:
    """Yield the cells of edges that are not dropped, by mark and by size of the weight."""
    marks = picture.marks
    groups: dict[EdgeMark, dict[float, list[str]]] = {mark: {} for mark in EDGE_LOOKS}
    for place, curve in enumerate(panel.curves):
        ends = (curve.edge.source, curve.edge.target)
        mark = marks.edges[ends]
        if mark != "dropped":
            size = max((abs(weight) for weight in marks.weights[ends]), default=FULL)
            shade = round(0.3 + 0.7 * min(size / FULL, 1.0), 1) if mark == "active" else 1.0
            groups[mark].setdefault(shade, []).append(f'<use href="#e{number}-{place}"/>')
    for mark, shades in groups.items():
        inner = (
            f'<g fill-opacity="{shade:g}">{"".join(cells)}</g>' for shade, cells in shades.items()
        )
        if shades:
            yield f'<g class="edges cells {mark}">{"".join(inner)}</g>'


def draw_diagonal(picture: Picture, number: int, panel: Panel) -> Iterator[str]:
    """Yield the blocks on the diagonal, and how to read the matrix."""
    side = _side(panel)
    for index, box in enumerate(panel.boxes):
        mark = mark_of(picture, box)
        kind = "end" if box.card.kind in ("entry", "out") and mark == "live" else mark
        named = f' data-node="n{number}-{index}"' if box.card.kind == "block" else ""
        place = f'x="{side * index:g}" y="{side * index:g}" width="{side:g}" height="{side:g}"'
        name = _name(picture.graph, box.card.members[0])
        yield f'<g class="node {kind}"{named}><title>{for_xml(name)}</title><rect {place} rx="3"/>'
        if mark == "unused":
            yield f'<path d="M{side * index:g},{side * (index + 1):g}l{side:g},{-side:g}"/>'
        label = box.lines[0]
        if text_width(label, LABEL) <= side - 1:
            middle = side * (index + 0.5)
            yield (
                f'<text x="{middle:g}" y="{middle + 2.6:g}" font-size="{LABEL:g}">'
                f"{for_xml(label)}</text>"
            )
        yield "</g>"
    bottom = matrix_size(panel) - 6 - 14 * (len(KEY) - 1)
    for row, line in enumerate(KEY):
        yield f'<text class="key" x="2" y="{bottom + 14 * row:g}" font-size="11">{line}</text>'


def _name(graph: DynamicGraph, node: str) -> str:
    block = graph.nx.nodes[node]["block"]
    return "out" if block.kind == "out" else fit(block.module_path or block.name, 12, 400)


def _side(panel: Panel) -> float:
    return max(LEAST_SIDE, min(SIDE, WHOLE / len(panel.boxes)))
