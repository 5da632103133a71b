"""A picture as SVG, written without a drawing program or scripts.

It is fast enough to be written for every image.
"""

import base64
import io
from collections.abc import Iterator, Sequence

from PIL import Image

from dggraph.views.annotations import EDGE_LOOKS, GREY, INK, EdgeMark, Look, edge_width
from dggraph.views.box_overlay import place_outlines, write_outlines
from dggraph.views.captions import Frame, make_frame
from dggraph.views.colour_scheme import SCHEMED, write_style
from dggraph.views.escaping import for_xml
from dggraph.views.html_page import render
from dggraph.views.layout import DETAIL, LABEL, LINE, Panel, Rectangle
from dggraph.views.matrix_diagram import KEY_SIZE, cell_shade, explain, name_blocks
from dggraph.views.matrix_diagram import LABEL as MATRIX_LABEL
from dggraph.views.picture import Picture, bars_of, baselines, box_look, lines_of, mark_of
from dggraph.views.stage_bars import place_bar

PANEL_FILL, PANEL_STROKE = "#fbfcfd", "#dfe4ea"
DENSE = ' stroke-opacity="0.6"'
MIN_SHOWN = 720.0
"""Pixels; in a narrower notebook cell, the picture scrolls instead of shrinking."""
SHARPNESS = 7 / 3
"""Pixels of an embedded thumbnail per pixel of the picture."""


def write_svg(picture: Picture) -> str:
    """Return the picture as one SVG element.

    Edges have `data-edge="source target"` and their mark as class, and nodes have `data-node`.
    """
    frame = make_frame(picture)
    size = (
        f'width="{frame.width:g}" height="{frame.height:g}" viewBox="0 0 {frame.width:g}'
        f' {frame.height:g}"'
    )
    size += ' style="max-width:100%;height:auto"'  # a page may be narrower
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial,'
            ' sans-serif" role="img">'
        ),
        f"<title>{for_xml(picture.title)}</title>",
        write_style(picture.scheme),
        f'<g class="{SCHEMED}">',
        f'<rect width="{frame.width:g}" height="{frame.height:g}" fill="#ffffff"/>',
        "</g>",
        *_photos(picture, frame),
        f'<g class="{SCHEMED}">',
        *_surroundings(frame),
        f'<g transform="translate(0 {frame.top:g})">',
        *(line for panel in picture.layout.panels for line in _panel(panel)),
        *_links(picture),
        *_edges(picture),
        *(
            line
            for panel in picture.layout.panels
            for box in panel.boxes
            for line in _box(picture, panel, box)
        ),
        *(line for panel in picture.layout.panels for line in _notes(panel)),
        "</g>",
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def show_picture(picture: Picture) -> str:
    """Return HTML for a notebook: as wide as the cell, or scrolling if the cell is too narrow."""
    width = min(make_frame(picture).width, MIN_SHOWN)
    return render("picture.html", width=width, picture=write_svg(picture))


def data_uri(image: Image.Image, side: float) -> str:
    """Return a copy of `image`, at most `side` pixels wide or high, as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _photos(picture: Picture, frame: Frame) -> Iterator[str]:
    for (image, detected), (x, y, width, height) in zip(
        picture.thumbnails, frame.images, strict=True
    ):
        uri = data_uri(image, SHARPNESS * max(width, height))
        yield f'<image x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" href="{uri}"/>'
        if detected is not None:
            yield from write_outlines(place_outlines(detected, (x, y, width, height)))


def _surroundings(frame: Frame) -> Iterator[str]:
    for text in frame.texts:
        weight = ' font-weight="bold"' if text.is_bold else ""
        place = (
            f'x="{text.x:g}" y="{text.y:g}" font-size="{text.size:g}" fill="{text.colour}"{weight}'
        )
        yield f"<text {place}>{for_xml(text.text)}</text>"
    for x, y, (look, _, is_node) in frame.samples:
        if is_node:
            yield f'<rect x="{x:g}" y="{y - 6:g}" width="22" height="12" rx="3" {_paint(look)}/>'
            yield from _strike(look, x, y - 6, 22.0, 12.0)
        else:
            yield f'<path d="M{x:g},{y:g}h22" {_paint(look)}/>'


def _panel(panel: Panel) -> Iterator[str]:
    place = f'x="{panel.x:g}" y="{panel.y:g}" width="{panel.width:g}" height="{panel.height:g}"'
    yield f'<rect {place} rx="8" fill="{PANEL_FILL}" stroke="{PANEL_STROKE}"/>'
    for index, line in enumerate(panel.heading):
        looks = f'font-size="{DETAIL:g}" fill="{GREY}"'
        if index == 0:
            looks = f'font-size="12" font-weight="bold" fill="{INK}"'
        yield _text(panel.x + 12, panel.y + 18 + LINE * index, line, looks)


def _links(picture: Picture) -> Iterator[str]:
    yield f'<g fill="none" stroke="{GREY}" stroke-dasharray="1.5 2.5">'
    for (x, y), (end, _) in picture.layout.links:
        yield f'<path d="M{x:g},{y:g}H{end:g}"/>'
    yield "</g>"


def _edges(picture: Picture) -> Iterator[str]:
    """Yield edges grouped by mark, faint ones below."""
    marks = picture.marks
    groups: dict[str, list[str]] = {mark: [] for mark in EDGE_LOOKS}
    for panel in picture.layout.panels:
        for curve in panel.curves:
            source, target = curve.edge.source, curve.edge.target
            mark = marks.edges[source, target]
            weights = marks.weights.get((source, target), ())
            width = edge_width(mark, weights) * curve.scale
            looks = f' stroke-width="{width:.2f}"{DENSE * (curve.scale < 1)}'
            if panel.is_matrix:
                looks = _cell_looks(mark, weights)
            told = (
                ""
                if mark == "dropped" or not weights
                else " and ".join(f"{weight:.3f}" for weight in weights)
            )
            tip = f"><title>{source} to {target}: {told}</title></path>" if told else "/>"
            groups[mark].append(f'<path d="{curve.svg}" data-edge="{source} {target}"{looks}{tip}')
    for mark, look in EDGE_LOOKS.items():
        if groups[mark]:
            yield f'<g class="{mark}" {_paint(look)} stroke-linejoin="round">'
            yield from groups[mark]
            yield "</g>"


def _cell_looks(mark: EdgeMark, weights: Sequence[float]) -> str:
    """Return the attributes of a cell: faint ones are outlined only."""
    if mark == "dropped":
        return ' stroke-width="0.6"'
    shade = cell_shade(mark, weights)
    return f' fill="{EDGE_LOOKS[mark].stroke}" fill-opacity="{shade:g}" stroke-width="0.3"'


def _box(picture: Picture, panel: Panel, box: Rectangle) -> Iterator[str]:
    mark = mark_of(picture, box)
    look, ink = box_look(picture, box)
    name = for_xml(box.card.name)
    yield f'<g class="{mark}" data-node="{name}"><title>{for_xml(_tip(picture, box))}</title>'
    radius = 9.0 if box.card.kind == "out" else 4.0
    radius = min(4.0, box.width / 5) if panel.is_matrix else radius
    place = f'x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}"'
    yield f'<rect {place} rx="{radius:g}" {_paint(look)}/>'
    yield from _strike(look, box.x, box.y, box.width, box.height)
    lines = () if panel.is_matrix else lines_of(picture, box)
    bars = bars_of(picture, box)
    x, anchor = (box.x + 8, "start") if bars else (box.x + box.width / 2, "middle")
    marks = baselines(box, len(lines))
    for index, (line, y) in enumerate(zip(lines, marks, strict=True)):
        is_first = index == 0 and not bars
        size = LABEL if is_first and len(lines) > 1 else DETAIL
        colour = ink if is_first or bars or mark == "dead" else GREY
        yield _text(x, y, line, f'font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"')
    for bar, y in zip(bars, marks, strict=False):
        for strip in place_bar(bar, box.x + box.width - 8, y):
            fill = PANEL_STROKE if strip.mark is None else EDGE_LOOKS[strip.mark].stroke
            place = f'x="{strip.x:g}" y="{strip.y:g}" width="{strip.width:g}"'
            yield f'<rect {place} height="{strip.height:g}" fill="{fill}"/>'
    yield "</g>"


def _notes(panel: Panel) -> Iterator[str]:
    """Yield the names of blocks in a matrix, and how to read it."""
    if panel.is_matrix:
        for notes, size, colour in (
            (name_blocks(panel), MATRIX_LABEL, INK),
            (explain(panel), KEY_SIZE, GREY),
        ):
            for x, y, text, anchor in notes:
                looks = f'font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"'
                yield _text(x, y, text, looks)


def _tip(picture: Picture, box: Rectangle) -> str:
    state = {"unused": "reached, unused", "dead": "never reached", "plain": ""}.get(
        mark_of(picture, box), ""
    )
    return " · ".join(
        text for text in (box.card.name, box.card.label, *box.card.details, state) if text
    )


def _text(x: float, y: float, text: str, looks: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" {looks}>{for_xml(text)}</text>'


def _strike(look: Look, x: float, y: float, width: float, height: float) -> Iterator[str]:
    if look.is_struck:
        line = f"M{x:g},{y + height:g}l{width:g},{-height:g}"
        yield f'<path d="{line}" stroke="{look.stroke}" stroke-opacity="0.55"/>'


def _paint(look: Look) -> str:
    dash = ' stroke-dasharray="3 2"' if look.is_dashed else ""
    return f'fill="{look.fill}" stroke="{look.stroke}" stroke-width="{look.width:g}"{dash}'
