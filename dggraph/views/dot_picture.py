"""A picture as DOT with fixed positions.

With `layout=nop2`, every graphviz program prints the layout of the SVG, with its arcs.
"""

from collections.abc import Iterator
from contextlib import suppress

import graphviz

from dggraph.views.annotations import EDGE_LOOKS, GREY, INK, EdgeMark, edge_width
from dggraph.views.captions import Frame, Text, make_frame
from dggraph.views.escaping import for_dot, text_width
from dggraph.views.layout import DETAIL, LINE, Curve, Panel, Rectangle
from dggraph.views.matrix_diagram import KEY_SIZE, cell_shade, explain, name_blocks
from dggraph.views.matrix_diagram import LABEL as MATRIX_LABEL
from dggraph.views.picture import Picture, bars_of, baselines, box_look, lines_of, mark_of
from dggraph.views.stage_bars import place_bar
from dggraph.views.svg_picture import PANEL_FILL, PANEL_STROKE, show_picture, write_svg

INCH = 72.0


class Drawing(graphviz.Digraph):  # type: ignore[misc]  # graphviz has no types
    """DOT source that notebooks show as SVG, without a drawing program."""

    picture: Picture

    def _repr_mimebundle_(self, *_args: object, **_options: object) -> dict[str, str]:
        bundle = {"text/plain": str(self.source)}
        with suppress(
            Exception
        ):  # a copy of this object may lack its picture, and a notebook cell must not fail then
            bundle["image/svg+xml"] = write_svg(self.picture)
            bundle["text/html"] = show_picture(self.picture)
        return bundle


def write_dot(picture: Picture) -> Drawing:
    """Return the picture as DOT.

    Ids are generated. Thumbnails are left out, since DOT can only refer to image files.
    """
    frame = make_frame(picture)
    drawing = Drawing("dggraph")
    drawing.picture = picture
    drawing.attr(layout="nop2", bgcolor="white", outputorder="nodesfirst", pad="0", margin="0")
    drawing.attr(
        "node",
        shape="box",
        style="filled,rounded",
        fontname="Helvetica",
        fixedsize="true",
        margin="0",
        label="",
    )
    drawing.attr("edge", arrowsize="0.35")
    drawing.node(
        "page",
        **place_node(frame, 0, 0, frame.width, frame.height),
        style="filled",
        color="white",
        fillcolor="white",
    )
    for index, (x, y, (look, _, is_node)) in enumerate(frame.samples):
        looks = {
            "color": look.stroke,
            "fillcolor": look.fill if is_node else look.stroke,
            "style": "filled",
        }
        height = 12.0 if is_node else look.width
        drawing.node(f"sample{index}", **place_node(frame, x, y - height / 2, 22, height), **looks)
    for index, panel in enumerate(picture.layout.panels):
        place = place_node(frame, panel.x, panel.y + frame.top, panel.width, panel.height)
        drawing.node(f"panel{index}", **place, color=PANEL_STROKE, fillcolor=PANEL_FILL)
    for index, text in enumerate((*frame.texts, *_headings(picture, frame))):
        place = place_node(
            frame,
            text.x,
            text.y - text.size,
            min(text_width(text.text, text.size) * 1.25 + 8, frame.width - text.x),
            text.size * 1.4,
        )
        looks = {
            "fontsize": f"{text.size:g}",
            "fontcolor": text.colour,
            "fontname": f"Helvetica{'-Bold' * text.is_bold}",
        }
        drawing.node(
            f"text{index}",
            **place,
            **looks,
            shape="plaintext",
            style="",
            label=f"{for_dot(text.text)}\\l",
        )
    for index, ((x, y), (end, _)) in enumerate(picture.layout.links):
        drawing.node(
            f"link{index}",
            **place_node(frame, x, y + frame.top, end - x, 0.1),
            color=GREY,
            style="dotted",
        )
    ids = {
        box.card.name: f"n{index}"
        for index, box in enumerate(box for panel in picture.layout.panels for box in panel.boxes)
    }
    for panel in picture.layout.panels:
        for box in panel.boxes:
            place = place_node(frame, box.x, box.y + frame.top, box.width, box.height)
            drawing.node(ids[box.card.name], **place, **_box_looks(picture, panel, box))
    order = list(EDGE_LOOKS)
    curves = [(curve, panel) for panel in picture.layout.panels for curve in panel.curves]
    curves.sort(key=lambda one: order.index(_mark(picture, one[0])))
    for index, (curve, panel) in enumerate(curves):
        if panel.is_matrix:
            drawing.node(f"cell{index}", **_cell_looks(picture, curve, frame))
        else:
            ends = (curve.edge.source, curve.edge.target)
            drawing.edge(*(ids[end] for end in ends), **_edge_looks(picture, curve, frame))
    for index, (place, looks, label) in enumerate(_additions(picture, frame)):
        drawing.node(f"more{index}", **place, **looks, label=label)
    return drawing


def place_node(frame: Frame, x: float, y: float, width: float, height: float) -> dict[str, str]:
    """Return DOT attributes for position (the centre) and size; y runs upward in DOT."""
    pos = f"{x + width / 2:.1f},{frame.height - y - height / 2:.1f}"
    return {"pos": pos, "width": f"{width / INCH:.3f}", "height": f"{height / INCH:.3f}"}


def _headings(picture: Picture, frame: Frame) -> Iterator[Text]:
    for panel in picture.layout.panels:
        x, y = panel.x + 12, panel.y + frame.top
        for index, line in enumerate(panel.heading):
            size, colour = (12.0, INK) if index == 0 else (DETAIL, GREY)
            yield Text(
                x=x,
                y=y + 18 + LINE * index,
                text=line,
                size=size,
                colour=colour,
                is_bold=index == 0,
            )


def _mark(picture: Picture, curve: Curve) -> EdgeMark:
    return picture.marks.edges[curve.edge.source, curve.edge.target]


def _cell_looks(picture: Picture, curve: Curve, frame: Frame) -> dict[str, str]:
    """Return the place and the look of an edge in a matrix."""
    mark, (x, y), (right, bottom) = _mark(picture, curve), curve.points[0], curve.points[2]
    shade = cell_shade(mark, picture.marks.weights.get((curve.edge.source, curve.edge.target), ()))
    colour = EDGE_LOOKS[mark].stroke
    is_faint = mark == "dropped"
    return place_node(frame, x, y + frame.top, right - x, bottom - y) | {
        "style": "" if is_faint else "filled",
        "color": colour,
        "fillcolor": f"{colour}{round(255 * shade):02x}",
        "penwidth": "0.6" if is_faint else "0.3",
        "class": mark,
    }


def _additions(
    picture: Picture, frame: Frame
) -> Iterator[tuple[dict[str, str], dict[str, str], str]]:
    """Yield place, look and text of the names in matrices, and of the bars of stages."""
    for panel in picture.layout.panels:
        if panel.is_matrix:
            for notes, size, colour in (
                (name_blocks(panel), MATRIX_LABEL, INK),
                (explain(panel), KEY_SIZE, GREY),
            ):
                for x, y, text, anchor in notes:
                    width = text_width(text, size) * 1.25 + 8
                    left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
                    place = place_node(frame, left, y + frame.top - size, width, size * 1.4)
                    looks = {"fontsize": f"{size - 1:g}", "fontcolor": colour, "style": ""}
                    turn = {"start": "\\l", "middle": "", "end": "\\r"}[anchor]
                    yield place, looks | {"shape": "plaintext"}, for_dot(text) + turn
        for box in panel.boxes:
            bars = bars_of(picture, box)
            for bar, y in zip(bars, baselines(box, len(bars)), strict=True):
                for strip in place_bar(bar, box.x + box.width - 8, y + frame.top):
                    fill = PANEL_STROKE if strip.mark is None else EDGE_LOOKS[strip.mark].stroke
                    place = place_node(frame, strip.x, strip.y, strip.width, strip.height)
                    yield place, {"style": "filled", "color": fill, "fillcolor": fill}, ""


def _box_looks(picture: Picture, panel: Panel, box: Rectangle) -> dict[str, str]:
    look, ink = box_look(picture, box)
    style = "filled,rounded,dashed" if look.is_dashed else "filled,rounded"
    looks = {
        "color": look.stroke,
        "penwidth": f"{look.width:g}",
        "fillcolor": look.fill,
        "style": style,
        "fontcolor": ink,
    }
    lines = () if panel.is_matrix else lines_of(picture, box)
    turn = "\\l" if box.card.kind == "stage" else "\\n"
    before = "\N{NO-BREAK SPACE}" * 3 if box.card.kind == "stage" else ""
    label = turn.join(before + for_dot(line) for line in lines) + turn * bool(before)
    return looks | {"label": label, "fontsize": f"{DETAIL:g}", "class": mark_of(picture, box)}


def _edge_looks(picture: Picture, curve: Curve, frame: Frame) -> dict[str, str]:
    ends = (curve.edge.source, curve.edge.target)
    mark = picture.marks.edges[ends]
    look = EDGE_LOOKS[mark]
    width = edge_width(mark, picture.marks.weights.get(ends, ())) * curve.scale
    points = [(x, frame.height - y - frame.top) for x, y in curve.points]
    tip = ""
    if curve.scale == 1 and mark != "dropped":
        (x, y), back = points[-1], (4, 0) if curve.is_straight else (0, -4)
        tip, points[-1] = f"e,{x:.1f},{y:.1f} ", (x - back[0], y - back[1])
    pos = tip + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return {
        "pos": pos,
        "arrowhead": "normal" if tip else "none",
        "color": look.stroke + "99" * (curve.scale < 1),
        "penwidth": f"{width:.2f}",
        "class": mark,
    }
