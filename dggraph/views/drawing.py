"""Drawing of graphs and paths: `render` returns DOT, and `draw` writes a file in any format."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import graphviz
from PIL import Image

from dggraph.errors import InputError, MissingExtraError
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.system.files import write_whole
from dggraph.system.paths import locate
from dggraph.views.box_overlay import RIM, STROKE, TAG, place_outlines
from dggraph.views.captions import make_frame
from dggraph.views.dot_picture import INCH, place_node, write_dot
from dggraph.views.escaping import for_dot
from dggraph.views.json_picture import write_json
from dggraph.views.mermaid_picture import write_mermaid
from dggraph.views.picture import Picture, picture_graph, picture_path
from dggraph.views.svg_picture import show_picture, write_svg

DRAW_SECONDS = 120
PNG_DPI = 144

TEXT_WRITERS: Mapping[str, Callable[[Picture], str]] = {
    "svg": write_svg,
    "dot": lambda picture: str(write_dot(picture).source),
    "mmd": write_mermaid,
    "json": write_json,
}
FORMATS = (*TEXT_WRITERS, "png", "pdf")


def render(
    graph: DynamicGraph, path: ActivatedPath | None = None, *, title: str = ""
) -> graphviz.Digraph:
    """Return a graph, or the path of one image, as DOT with fixed positions.

    Notebooks show it as SVG. No drawing program is needed.

    Without a path, static edges are dark and other candidate edges are light. With a path, active
    edges are coloured and as wide as their weight, and dropped edges are faint. Nodes that the
    image never reached are grey. Nodes that it reached but that do not reach `out` are marked as
    unused.

    Args:
        graph: The wired graph.
        path: The activated path of one image.
        title: The heading; by default the name of the graph.

    Example:
        >>> import dggraph
        >>> drawing = dggraph.render(dggraph.convert("dggraph:resnet20_8").graph)
        >>> drawing.source.startswith("digraph")
        True
    """
    return write_dot(
        picture_graph(graph, title=title)
        if path is None
        else picture_path(graph, path, title=title)
    )


def draw(picture: Picture, file: str | os.PathLike[str]) -> None:
    """Write `picture` in the format given by the suffix of the file.

    Formats are .svg, .dot, .mmd (Mermaid) and .json; .png needs a drawing program, and .pdf needs
    the system's graphviz.

    Raises:
        InputError: The suffix is unknown, the drawing program failed, or `file` cannot be written.
        MissingExtraError: The format needs a drawing program that is not installed.
    """
    file = locate(file)
    kind = format_of(file)
    content = (
        TEXT_WRITERS[kind](picture).encode() if kind in TEXT_WRITERS else _print(picture, kind)
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {str(file.parent)!r}: {error.strerror or error}. Choose"
            " another place."
        ) from error
    write_whole(file, content)


def format_of(file: Path) -> str:
    """Return the format given by the suffix of `file`.

    Raises:
        InputError: The format is unknown.
    """
    kind = file.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        known = ", ".join(f".{known}" for known in FORMATS)
        raise InputError(
            f"{file.name!r}: cannot draw {kind or 'a file without suffix'!r}. Use {known}."
        )
    return kind


def dot_command() -> str | None:
    """Return the path of the system's `dot`, else of `graphviz-pure`, else None.

    `graphviz-pure` is found on PATH or beside this Python.
    """
    return (
        shutil.which("dot")
        or shutil.which("graphviz-pure")
        or shutil.which("graphviz-pure", path=str(Path(sys.executable).parent))
    )


def _print(picture: Picture, kind: str) -> bytes:
    """Return png or pdf from the drawing program; thumbnails are placed under a png."""
    command = dot_command()
    if command is None or (kind == "pdf" and Path(command).stem != "dot"):
        need = "pdf needs the system's graphviz" if kind == "pdf" else "png needs graphviz"
        raise MissingExtraError(
            f"{need}: install it{'' if kind == 'pdf' else ', or pip install dggraph[dot]'}. .svg,"
            " .dot, .mmd and .json work without it."
        )
    with tempfile.TemporaryDirectory() as folder:
        drawing = write_dot(picture)
        if kind == "pdf":
            _add_thumbnails(picture, drawing, Path(folder))
        elif picture.thumbnails:
            _clear_page(drawing)
        _add_outlines(picture, drawing)
        dpi = [f"-Gdpi={PNG_DPI}"] if kind == "png" else []
        try:
            source = str(drawing.source).encode()
            done = subprocess.run(
                [command, f"-T{kind}", *dpi],
                input=source,
                capture_output=True,
                timeout=DRAW_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"{command} took more than {DRAW_SECONDS} s. Write an .svg file instead."
            ) from error
    if done.returncode != 0 or not done.stdout:
        raise InputError(f"{command} failed: {done.stderr.decode(errors='replace').strip()[:300]}")
    return _lay_under(picture, done.stdout) if kind == "png" and picture.thumbnails else done.stdout


def _add_thumbnails(picture: Picture, drawing: graphviz.Digraph, folder: Path) -> None:
    """Write thumbnails to files and add them to `drawing`, for graphviz to place in a pdf."""
    frame = make_frame(picture)
    for index, ((image, _), (x, y, width, height)) in enumerate(
        zip(picture.thumbnails, frame.images, strict=True)
    ):
        file = folder / f"{index}.png"
        image.convert("RGB").resize((max(1, int(width * 3)), max(1, int(height * 3)))).save(file)
        place = place_node(frame, x, y, width, height)
        drawing.node(
            f"image{index}", **place, image=str(file), imagescale="both", shape="none", style=""
        )


def _clear_page(drawing: graphviz.Digraph) -> None:
    """Make the page transparent, so the images under it are visible."""
    drawing.attr(bgcolor="transparent")
    drawing.node("page", style="", color="transparent")


def _add_outlines(picture: Picture, drawing: graphviz.Digraph) -> None:
    """Add detected objects, each an outline with a rim, and their tags on top.

    Text is a little smaller than in the SVG, in case a wider font replaces Helvetica.
    """
    frame = make_frame(picture)
    outlines = [
        one
        for (_, detected), place in zip(picture.thumbnails, frame.images, strict=True)
        if detected is not None
        for one in place_outlines(detected, place)
    ]
    for index, one in enumerate(outlines):
        for kind, colour, width in (("rim", one.contrast, RIM), ("outline", one.colour, STROKE)):
            drawing.node(
                f"{kind}{index}",
                **place_node(frame, *one.place),
                style="",
                color=colour,
                penwidth=f"{width:g}",
            )
    for index, one in enumerate(outlines):
        looks = {
            "color": one.contrast,
            "fillcolor": one.colour,
            "fontcolor": one.contrast,
            "fontsize": f"{TAG - 1:g}",
        }
        drawing.node(
            f"tag{index}",
            **place_node(frame, *one.tag),
            **looks,
            label=for_dot(one.text),
            style="filled",
        )


def _lay_under(picture: Picture, png: bytes) -> bytes:
    """Put the thumbnails under the transparent page, since graphviz-pure draws no images."""
    scale = PNG_DPI / INCH
    drawn = Image.open(BytesIO(png)).convert("RGBA")
    page = Image.new("RGBA", drawn.size, "white")
    for (image, _), (x, y, width, height) in zip(
        picture.thumbnails, make_frame(picture).images, strict=True
    ):
        size = max(1, int(width * scale)), max(1, int(height * scale))
        page.paste(image.convert("RGB").resize(size), (int(x * scale), int(y * scale)))
    page.alpha_composite(drawn)
    stream = BytesIO()
    page.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _draw_in_notebook(graph: DynamicGraph) -> str:
    return show_picture(picture_graph(graph))


DynamicGraph.notebook_drawer = _draw_in_notebook
