"""The layout of a picture: each stage is a line of blocks, or a matrix.

In a line, edges between neighbours are straight, and all others are arcs. A stage of many edges is
a matrix, since arcs would cover each other: blocks stand on the diagonal, in order. Right of a
block are the edges out of it, above it those into it, so the upper triangle is the adjacency
matrix: row = source, column = target.

Positions depend on the graph only, so pictures of different images only differ in colours.
Graphviz's layouts would depend on the drawn edges, and would need a program. Units are pixels, y
downward.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dggraph.graph.ir import BlockNode, CandidateEdge, DynamicGraph
from dggraph.views.collapse import Card, Level, choose_level, deal_cards, format_shape, usual_shape
from dggraph.views.escaping import count, fit, plural, text_width, wrap

PAGE, MARGIN, PAD, LINK, HEADING = 820.0, 12.0, 14.0, 26.0, 40.0
LEAST_PAGE = 320.0
"""The narrowest page; a phone has about 390 pixels."""
LABEL, DETAIL = 11.0, 10.0
LINE, CARD = 13.0, 200.0
"""Height of a line of text, and width of the card of a stage."""
RISE, RISE_PER_PIXEL = 9.0, 0.2
MAX_ARCS = 150
"""Stages with more candidate edges are matrices."""
SIDE, LEAST_SIDE, WHOLE = 18.0, 5.0, 700.0
"""Pixels of a cell: 18, or less if the whole would be wider than 700 or the page."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """A card at its position."""

    card: Card
    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]
    """The parts of label and details that fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A candidate edge: a straight line, an arc as one cubic Bézier curve, or a cell."""

    edge: CandidateEdge
    points: tuple[Point, Point, Point, Point]
    """Start, two control points and end; of a cell, its corners clockwise from the left top."""
    is_straight: bool
    scale: float
    """Factor of line widths; below 1 in stages with many edges."""
    svg: str
    """`points` as an SVG path, computed once per graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """The frame of a stage, with its heading."""

    stage: str
    x: float
    y: float
    width: float
    height: float
    heading: tuple[str, ...]
    """The name of the stage, and one or more lines about it."""
    boxes: tuple[Rectangle, ...]
    curves: tuple[Curve, ...]
    is_matrix: bool
    """Whether boxes stand on the diagonal of a matrix, and curves are its cells."""

    @property
    def side(self) -> float:
        """The width of a cell of a matrix, which is its height too."""
        return self.boxes[0].width


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The positions of all parts of a graph."""

    level: Level
    width: float
    height: float
    page: float
    """The width that it was made for."""
    panels: tuple[Panel, ...]
    links: tuple[tuple[Point, Point], ...]
    """Lines for the static parts before, between and after the stages."""


def lay_out(
    graph: DynamicGraph,
    *,
    level: Level | None = None,
    ops: Mapping[str, Sequence[str]] | None = None,
    page: float = PAGE,
) -> Layout:
    """Place every stage of `graph`, left to right and in rows like text.

    The same graph always gets the same layout.

    Args:
        graph: The wired graph.
        level: `op`, `block` or `stage`; by default `block`, or `stage` for more than 150 nodes.
        ops: {node: names of its operations}, for the level `op`.
        page: The width to fit in, at least `LEAST_PAGE`. Only the level `op` may exceed it.
    """
    level = level or choose_level(graph)
    room = page - 2 * MARGIN - 2 * LINK
    drafts = [_draft(graph, stage, level, ops or {}, room) for stage in graph.stages]
    panels: list[Panel] = []
    links: list[tuple[Point, Point]] = []
    y = MARGIN
    for row in _rows(drafts, room):
        above = max(
            HEADING
            + LINE * (len(panel.heading) - 2)
            + max((_rise(panel, curve) for curve in panel.curves), default=0.0)
            for panel in row
        )
        tall = max(box.y + box.height for panel in row for box in panel.boxes)
        height, top, x = above + tall + PAD, y + above, MARGIN
        for number, panel in enumerate(row):
            x += LINK
            placed = _move(panel, x, y, top, height)
            before = LINK if number == 0 else LINK / 2
            after = LINK if number == len(row) - 1 else LINK / 2
            links += _links(placed, x - before, x + panel.width + after)
            x += panel.width
            panels.append(placed)
        y += height + PAD
    width = max((panel.x + panel.width for panel in panels), default=0.0) + LINK + MARGIN
    return Layout(
        level=level, width=width, height=y, page=page, panels=tuple(panels), links=tuple(links)
    )


def _draft(
    graph: DynamicGraph, stage: str, level: Level, ops: Mapping[str, Sequence[str]], room: float
) -> Panel:
    """Lay out one stage, with the top of its boxes at y = 0."""
    cards, edges = deal_cards(graph, stage, level, ops), graph.edges(stage)
    inside = room - 2 * PAD
    boxes, form = _line_up(cards, gap=22.0), "line"
    if boxes[-1].x + boxes[-1].width > PAD + inside:
        boxes = _line_up(cards, gap=12.0)
    if level == "block" and boxes[-1].x + boxes[-1].width > PAD + inside:
        boxes, form = _line_up_densely(cards), "dense line"
    if level == "block" and (len(edges) > MAX_ARCS or boxes[-1].x + boxes[-1].width > PAD + inside):
        boxes, form = _line_up_diagonally(cards, inside), "matrix"
    by_name = {box.card.name: box for box in boxes}
    order = {name: index for index, name in enumerate(by_name)}
    curves = tuple(
        _cell(edge, by_name)
        if form == "matrix"
        else _connect(
            edge,
            by_name,
            is_next=order[edge.target] - order[edge.source] == 1,
            scale=0.55 if form == "dense line" else 1.0,
        )
        for edge in (edges if level != "stage" else ())
    )
    heading = (
        fit(stage, 12, inside),
        *wrap(" · ".join(_describe(graph, stage, is_dense=form != "line")), DETAIL, inside),
    )
    width = max(
        boxes[-1].x + boxes[-1].width + PAD,
        text_width(heading[0], 12) + 2 * PAD,
        *(text_width(line, DETAIL) + 2 * PAD for line in heading[1:]),
    )
    return Panel(
        stage=stage,
        x=0,
        y=0,
        width=width,
        height=0,
        heading=heading,
        boxes=boxes,
        curves=curves,
        is_matrix=form == "matrix",
    )


def _line_up(cards: Sequence[Card], *, gap: float) -> tuple[Rectangle, ...]:
    boxes: list[Rectangle] = []
    x = PAD
    for card in cards:
        if card.kind == "stage":
            height = LINE * 3 + 10
            lines = (card.label, *card.details)
            boxes.append(Rectangle(card=card, x=x, y=0, width=CARD, height=height, lines=lines))
            continue
        widest = max(
            text_width(card.label, LABEL),
            *(text_width(line, DETAIL) for line in ("", *card.details)),
        )
        width = 34.0 if card.kind == "out" else min(max(widest + 14, 48), 124)
        height = max(LINE * (1 + len(card.details)) + 8, 28.0) if card.kind != "out" else 28.0
        lines = (
            fit(card.label, LABEL, width - 8),
            *(fit(line, DETAIL, width - 6) for line in card.details),
        )
        lines = lines[:1] if card.kind == "out" else lines
        boxes.append(Rectangle(card=card, x=x, y=0, width=width, height=height, lines=lines))
        x += width + gap
    return tuple(boxes)


def _line_up_densely(cards: Sequence[Card]) -> tuple[Rectangle, ...]:
    """Return boxes as narrow as their short names."""
    names = _short_names(cards)
    width = max(20.0, *(text_width(name, DETAIL) + 5 for name in names))
    return tuple(
        Rectangle(
            card=card,
            x=PAD + index * (width + 5),
            y=0,
            width=width,
            height=22.0,
            lines=(fit(name, DETAIL, width),),
        )
        for index, (card, name) in enumerate(zip(cards, names, strict=True))
    )


def _line_up_diagonally(cards: Sequence[Card], inside: float) -> tuple[Rectangle, ...]:
    """Return squares from the left top to the right bottom."""
    side = max(LEAST_SIDE, min(SIDE, min(WHOLE, inside) // len(cards)))
    names = _short_names(cards)
    return tuple(
        Rectangle(
            card=card, x=PAD + side * index, y=side * index, width=side, height=side, lines=(name,)
        )
        for index, (card, name) in enumerate(zip(cards, names, strict=True))
    )


def _short_names(cards: Sequence[Card]) -> list[str]:
    """Return names without their common prefix, or v0, v1, ... if these are long too."""
    names = [card.label[_prefix(cards) :] if card.kind != "out" else card.label for card in cards]
    if max(text_width(name, DETAIL) for name in names) > 30:
        return [*(f"v{index}" for index in range(len(cards) - 1)), "out"]
    return names


def _prefix(cards: Sequence[Card]) -> int:
    """Return the length of the dotted prefix common to the names of all blocks."""
    names = [card.label for card in cards if card.kind == "block"]
    entry = [card.label for card in cards if card.kind == "entry" and card.details]
    parts = zip(*(name.split(".")[:-1] for name in names + entry), strict=False)
    shared = 0
    for part in parts:
        if len(set(part)) > 1:
            break
        shared += len(part[0]) + 1
    return shared


def _describe(graph: DynamicGraph, stage: str, *, is_dense: bool) -> list[str]:
    blocks = [node for node in graph.nodes(stage) if node.kind == "block"]
    shape = usual_shape(graph, stage)
    ends = (graph.nodes(stage)[0].shape, graph.nodes(stage)[-1].shape)
    texts = [
        format_shape(shape) if shape is not None else " to ".join(format_shape(end) for end in ends)
    ]
    if is_dense:
        least, most = min(node.macs for node in blocks), max(node.macs for node in blocks)
        each = count(least) if least == most else f"{count(least)} to {count(most)}"
        texts.append(
            f"{len(blocks)} blocks of {each} MACs, {_name(blocks[0])} to {_name(blocks[-1])}"
        )
    texts.append(plural(len(graph.edges(stage)), "edge"))
    if graph.stages[stage].residual == "lift":
        texts.append("lifted")
    return texts


def _name(node: BlockNode) -> str:
    return fit(node.module_path or node.name, DETAIL, 160)


def _connect(
    edge: CandidateEdge, boxes: Mapping[str, Rectangle], *, is_next: bool, scale: float
) -> Curve:
    source, target = boxes[edge.source], boxes[edge.target]
    if is_next:
        y = min(source.height, target.height, 28.0) / 2
        start, end = (source.x + source.width, y), (target.x, y)
        third = (end[0] - start[0]) / 3
        points = (start, (start[0] + third, y), (end[0] - third, y), end)
    else:
        start, end = (source.x + 0.68 * source.width, 0.0), (target.x + 0.32 * target.width, 0.0)
        lift = -(RISE + RISE_PER_PIXEL * (end[0] - start[0])) / 0.75
        points = (start, (start[0], lift), (end[0], lift), end)
    return Curve(edge=edge, points=points, is_straight=is_next, scale=scale, svg="")


def _cell(edge: CandidateEdge, boxes: Mapping[str, Rectangle]) -> Curve:
    source, target = boxes[edge.source], boxes[edge.target]
    x, y, side = target.x, source.y, target.width
    points = ((x, y), (x + side, y), (x + side, y + side), (x, y + side))
    return Curve(edge=edge, points=points, is_straight=False, scale=1.0, svg="")


def _rise(panel: Panel, curve: Curve) -> float:
    """Return how far a curve rises above the boxes."""
    return 0.0 if panel.is_matrix else max(0.0, -0.75 * min(y for _, y in curve.points))


def _links(panel: Panel, left: float, right: float) -> Iterator[tuple[Point, Point]]:
    """Yield the lines into the first box, from `left`, and out of the last one, to `right`."""
    first, last = panel.boxes[0], panel.boxes[-1]
    middle = min(first.height, last.height, 28.0) / 2
    yield (left, first.y + middle), (first.x, first.y + middle)
    yield (last.x + last.width, last.y + middle), (right, last.y + middle)


def _rows(panels: Sequence[Panel], room: float) -> list[list[Panel]]:
    """Return rows of stages; matrices are tall, so they share no row with lines."""
    rows: list[list[Panel]] = []
    x = 0.0
    for panel in panels:
        is_apart = bool(rows) and rows[-1][-1].is_matrix != panel.is_matrix
        if not rows or is_apart or x + LINK + panel.width > room:
            rows.append([])
            x = -LINK
        rows[-1].append(panel)
        x += LINK + panel.width
    return rows


def _move(panel: Panel, x: float, y: float, top: float, height: float) -> Panel:
    """Return `panel` at (x, y), with the top of its boxes at `top`."""
    boxes = tuple(replace(box, x=box.x + x, y=box.y + top) for box in panel.boxes)
    curves = tuple(
        (_move_cell if panel.is_matrix else _move_curve)(curve, x, top) for curve in panel.curves
    )
    return replace(panel, x=x, y=y, height=height, boxes=boxes, curves=curves)


def _move_cell(curve: Curve, x: float, y: float) -> Curve:
    a, b, c, d = ((round(px + x, 1), round(py + y, 1)) for px, py in curve.points)
    svg = f"M{a[0]:g},{a[1]:g}H{b[0]:g}V{c[1]:g}H{a[0]:g}z"
    return replace(curve, points=(a, b, c, d), svg=svg)


def _move_curve(curve: Curve, x: float, y: float) -> Curve:
    a, b, c, d = ((round(px + x, 1), round(py + y, 1)) for px, py in curve.points)
    shape = (
        f"H{d[0]:g}"
        if curve.is_straight
        else f"C{b[0]:g},{b[1]:g} {c[0]:g},{c[1]:g} {d[0]:g},{d[1]:g}"
    )
    head = (
        ""
        if curve.scale < 1
        else "m-4,-2.5l4,2.5l-4,2.5"
        if curve.is_straight
        else "m-2.5,-4l2.5,4l2.5,-4"
    )
    return replace(curve, points=(a, b, c, d), svg=f"M{a[0]:g},{a[1]:g}{shape}{head}")
