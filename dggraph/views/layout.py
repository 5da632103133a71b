"""The layout of a picture: each stage is a line of blocks.

Edges between neighbours are straight, and all others are arcs. Positions depend on the graph only,
so pictures of different images only differ in colours. Graphviz's layouts would depend on the drawn
edges, and would need a program. Units are pixels, y downward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dggraph.graph.ir import BlockNode, CandidateEdge, DynamicGraph
from dggraph.views.collapse import Card, Level, choose_level, deal_cards, format_shape, usual_shape
from dggraph.views.escaping import count, fit, plural, text_width

PAGE, MARGIN, PAD, LINK, HEADING = 1080.0, 12.0, 14.0, 30.0, 40.0
LABEL, DETAIL = 10.0, 9.0
RISE, RISE_PER_PIXEL = 9.0, 0.2

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
    """A candidate edge: a straight line, or an arc as one cubic Bézier curve."""

    edge: CandidateEdge
    points: tuple[Point, Point, Point, Point]
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
    heading: tuple[str, str]
    boxes: tuple[Rectangle, ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The positions of all parts of a graph."""

    level: Level
    width: float
    height: float
    panels: tuple[Panel, ...]
    links: tuple[tuple[Point, Point], ...]
    """Lines for the static parts before, between and after the stages."""


def lay_out(
    graph: DynamicGraph,
    *,
    level: Level | None = None,
    ops: Mapping[str, Sequence[str]] | None = None,
) -> Layout:
    """Place every stage of `graph`, left to right and in rows like text.

    The same graph always gets the same layout.

    Args:
        graph: The wired graph.
        level: `op`, `block` or `stage`; by default `block`, or `stage` for more than 150 nodes.
        ops: {node: names of its operations}, for the level `op`.
    """
    level = level or choose_level(graph)
    drafts = [_draft(graph, stage, level, ops or {}) for stage in graph.stages]
    panels: list[Panel] = []
    links: list[tuple[Point, Point]] = []
    y = MARGIN
    for row in _rows(drafts):
        rise = max(
            max((_height(curve.points) for curve in panel.curves), default=0.0) for panel in row
        )
        tall = max(box.height for panel in row for box in panel.boxes)
        height, top, x = HEADING + rise + tall + PAD, y + HEADING + rise, MARGIN
        before = x
        for panel in row:
            x += LINK
            placed = _move(panel, x, y, top, height)
            middle = top + min(placed.boxes[0].height, placed.boxes[-1].height, 28.0) / 2
            links.append(((before, middle), (placed.boxes[0].x, middle)))
            before, x = placed.boxes[-1].x + placed.boxes[-1].width, x + panel.width
            panels.append(placed)
        links.append(((before, middle), (x + LINK, middle)))
        y += height + PAD
    width = max((panel.x + panel.width for panel in panels), default=0.0) + LINK + MARGIN
    return Layout(level=level, width=width, height=y, panels=tuple(panels), links=tuple(links))


def _draft(
    graph: DynamicGraph, stage: str, level: Level, ops: Mapping[str, Sequence[str]]
) -> Panel:
    """Lay out one stage, with the top of its boxes at y = 0."""
    cards = deal_cards(graph, stage, level, ops)
    boxes, is_dense = _line_up(cards, gap=22.0), False
    if level == "block" and boxes[-1].x + boxes[-1].width > PAGE - 2 * PAD:
        boxes, is_dense = _line_up_densely(cards), True
    by_name = {box.card.name: box for box in boxes}
    order = {name: index for index, name in enumerate(by_name)}
    curves = tuple(
        _connect(
            edge,
            by_name,
            is_next=order[edge.target] - order[edge.source] == 1,
            scale=0.55 if is_dense else 1.0,
        )
        for edge in (graph.edges(stage) if level != "stage" else ())
    )
    heading = (fit(stage, 12, 240), _describe(graph, stage, is_dense=is_dense))
    width = max(
        boxes[-1].x + boxes[-1].width + PAD,
        text_width(heading[1], DETAIL) + 2 * PAD,
        text_width(heading[0], 12) + 2 * PAD,
    )
    return Panel(
        stage=stage, x=0, y=0, width=width, height=0, heading=heading, boxes=boxes, curves=curves
    )


def _line_up(cards: Sequence[Card], *, gap: float) -> tuple[Rectangle, ...]:
    boxes: list[Rectangle] = []
    x = PAD
    for card in cards:
        widest = max(
            text_width(card.label, LABEL),
            *(text_width(line, DETAIL) for line in ("", *card.details)),
        )
        width = 34.0 if card.kind == "out" else min(max(widest + 14, 48), 124)
        height = max(12.0 * (1 + len(card.details)) + 8, 28.0) if card.kind != "out" else 28.0
        lines = (
            fit(card.label, LABEL, width - 8),
            *(fit(line, DETAIL, width - 6) for line in card.details),
        )
        lines = lines[:1] if card.kind == "out" else lines
        boxes.append(Rectangle(card=card, x=x, y=0, width=width, height=height, lines=lines))
        x += width + gap
    return tuple(boxes)


def _line_up_densely(cards: Sequence[Card]) -> tuple[Rectangle, ...]:
    """Return boxes as narrow as the names without their common prefix.

    If these are long too, the names are v0, v1, ...
    """
    names = [card.label[_prefix(cards) :] if card.kind != "out" else card.label for card in cards]
    if max(text_width(name, DETAIL) for name in names) > 30:
        names = [*(f"v{index}" for index in range(len(cards) - 1)), "out"]
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


def _describe(graph: DynamicGraph, stage: str, *, is_dense: bool) -> str:
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
    return fit(" · ".join(texts), DETAIL, 900)


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


def _height(points: Sequence[Point]) -> float:
    return -0.75 * min(y for _, y in points) if min(y for _, y in points) < 0 else 0.0


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    rows: list[list[Panel]] = []
    x = 0.0
    for panel in panels:
        if not rows or x + LINK + panel.width > PAGE:
            rows.append([])
            x = 0.0
        rows[-1].append(panel)
        x += LINK + panel.width
    return rows


def _move(panel: Panel, x: float, y: float, top: float, height: float) -> Panel:
    """Return `panel` at (x, y), with the top of its boxes at `top`."""
    boxes = tuple(replace(box, x=box.x + x, y=top) for box in panel.boxes)
    curves = tuple(_move_curve(curve, x, top) for curve in panel.curves)
    return replace(panel, x=x, y=y, height=height, boxes=boxes, curves=curves)


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
