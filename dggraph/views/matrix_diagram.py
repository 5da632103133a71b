"""A path through a stage of many blocks, as a matrix: shades of cells, names, and how to read it.

Positions come from `layout`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dggraph.graph.ir import DynamicGraph
from dggraph.views.annotations import EDGE_LOOKS, EdgeMark
from dggraph.views.escaping import fit, for_xml, text_width
from dggraph.views.layout import Panel
from dggraph.views.picture import Picture, mark_of

LABEL, KEY_SIZE, KEY_LINE = 9.0, 11.0, 14.0
EVERY = 5
"""Blocks whose names do not fit in their cells have only every fifth one named, beside it."""
FULL = 1.5
"""A weight of this size, or larger, has the full colour."""
KEY = (
    "On the diagonal: the blocks, in order.",
    "Right of a block: edges out of it.",
    "Above a block: edges into it.",
    "Darker: a larger weight.",
)


class Note(NamedTuple):
    """A text in a matrix: the position of its end or middle, on the baseline."""

    x: float
    y: float
    text: str
    anchor: str


def cell_shade(mark: EdgeMark, weights: Sequence[float]) -> float:
    """Return the opacity of a cell: that of an active edge grows with its weight."""
    size = max((abs(weight) for weight in weights), default=FULL)
    return round(0.3 + 0.7 * min(size / FULL, 1.0), 1) if mark == "active" else 1.0


def name_blocks(panel: Panel) -> list[Note]:
    """Return the names of the blocks: in their cells, or of every fifth one beside its cell."""
    side, last = panel.side, len(panel.boxes) - 1
    if all(text_width(box.lines[0], LABEL) <= side - 1 for box in panel.boxes):
        return [
            Note(box.x + side / 2, box.y + side / 2 + 3.2, box.lines[0], "middle")
            for box in panel.boxes
        ]
    return [
        Note(box.x - 3, box.y + side / 2 + 3.2, box.lines[0], "end")
        for index, box in enumerate(panel.boxes)
        if index == last or (index % EVERY == 0 and 0 < index < last - 1)
    ]


def explain(panel: Panel) -> list[Note]:
    """Return how to read the matrix, for the free corner below it; nothing if it is too small."""
    first, last = panel.boxes[0], panel.boxes[-1]
    bottom = last.y + last.height - 6 - KEY_LINE * (len(KEY) - 1)
    room = last.x - first.x - (last.y + last.height - bottom + KEY_SIZE) - 16
    if room < max(text_width(line, KEY_SIZE) for line in KEY):
        return []
    return [
        Note(first.x + 2, bottom + KEY_LINE * row, line, "start") for row, line in enumerate(KEY)
    ]


def draw_cells(picture: Picture, number: int, panel: Panel) -> Iterator[str]:
    """Yield the cells of edges that are not dropped, by mark and by size of the weight."""
    marks = picture.marks
    groups: dict[EdgeMark, dict[float, list[str]]] = {mark: {} for mark in EDGE_LOOKS}
    for place, curve in enumerate(panel.curves):
        ends = (curve.edge.source, curve.edge.target)
        mark = marks.edges[ends]
        if mark != "dropped":
            shade = cell_shade(mark, marks.weights[ends])
            groups[mark].setdefault(shade, []).append(f'<use href="#e{number}-{place}"/>')
    for mark, shades in groups.items():
        inner = (
            f'<g fill-opacity="{shade:g}">{"".join(cells)}</g>' for shade, cells in shades.items()
        )
        if shades:
            yield f'<g class="edges cells {mark}">{"".join(inner)}</g>'


def draw_diagonal(picture: Picture, number: int, panel: Panel) -> Iterator[str]:
    """Yield the blocks on the diagonal with their names, and how to read the matrix."""
    side = panel.side
    for index, box in enumerate(panel.boxes):
        mark = mark_of(picture, box)
        kind = "end" if box.card.kind in ("entry", "out") and mark == "live" else mark
        named = f' data-node="n{number}-{index}"' if box.card.kind == "block" else ""
        place = f'x="{box.x:g}" y="{box.y:g}" width="{side:g}" height="{side:g}"'
        name = for_xml(name_node(picture.graph, box.card.members[0]))
        yield f'<g class="node {kind}"{named}><title>{name}</title><rect {place} rx="3"/>'
        if mark == "unused":
            yield f'<path d="M{box.x:g},{box.y + side:g}l{side:g},{-side:g}"/>'
        yield "</g>"
    for notes, look in (
        (name_blocks(panel), f'class="name" font-size="{LABEL:g}"'),
        (explain(panel), f'class="key" font-size="{KEY_SIZE:g}"'),
    ):
        for x, y, text, anchor in notes:
            yield (
                f'<text {look} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{for_xml(text)}</text>'
            )


def name_node(graph: DynamicGraph, node: str) -> str:
    """Return the name of a node for readers."""
    block = graph.nx.nodes[node]["block"]
    return "out" if block.kind == "out" else fit(block.module_path or block.name, 12, 400)
