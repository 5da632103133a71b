"""Pictures: what is active, dropped, dead and unused is marked so; one layout for all images;
hostile names; no drawing program.
"""

import io
import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from drawn import HOSTILE, edge_marks, mermaid_text, node_marks, path_of, places, stages, texts
from PIL import Image
from rich.console import Console

import dggraph
from dggraph.errors import GraphError, InputError, MissingExtraError
from dggraph.graph.ir import DynamicGraph
from dggraph.views.drawing import FORMATS, dot_command, draw, render
from dggraph.views.escaping import count, fit, for_terminal, text_width, visible
from dggraph.views.layout import lay_out
from dggraph.views.mermaid_picture import write_mermaid
from dggraph.views.picture import Picture, picture_difference, picture_graph, picture_path
from dggraph.views.svg_picture import write_svg

GRAPH = stages(2)
PATH = path_of(GRAPH, {"a_0 a_1": 1.0, "a_0 a_out": 0.7})


def pictures(graph: DynamicGraph) -> list[Picture]:
    """The graph, two paths and their difference."""
    first = path_of(graph, {"a_0 a_out": 1.0, "b_0 b_1": 0.6, "b_1 b_out": 0.6})
    second = path_of(graph, {"a_0 a_1": 1.0, "a_1 a_out": 1.0, "b_0 b_out": 2.0}, margin=1e-6)
    return [
        picture_graph(graph),
        picture_path(graph, first, title="first"),
        picture_path(graph, second, title="a longer title, and facts", facts=["x"]),
        picture_difference(graph, first, second),
    ]


def test_a_graph_shows_static_and_candidate_edges() -> None:
    svg = write_svg(picture_graph(GRAPH))
    static = {"a_0 a_1", "a_1 a_2", "a_2 a_out"}
    assert edge_marks(svg) == {
        f"{edge.source} {edge.target}": "static"
        if f"{edge.source} {edge.target}" in static
        else "candidate"
        for edge in GRAPH.edges("a")
    }
    assert set(node_marks(svg).values()) == {"plain"}
    assert len(node_marks(svg)) == 4


def test_a_path_shows_active_dropped_dead_and_unused() -> None:
    svg = write_svg(picture_path(GRAPH, PATH, title="cat.jpg", facts=["tabby 0.91"]))
    assert edge_marks(svg) == {
        "a_0 a_1": "active",
        "a_0 a_2": "dropped",
        "a_1 a_2": "dropped",
        "a_0 a_out": "active",
        "a_1 a_out": "dropped",
        "a_2 a_out": "dropped",
    }
    assert node_marks(svg) == {"a_0": "live", "a_1": "unused", "a_2": "dead", "a_out": "live"}
    shown = " | ".join(texts(svg))
    assert "cat.jpg" in shown
    assert "tabby 0.91" in shown
    assert "2 of 6 edges active" in shown
    assert "1.5M MACs" in shown
    assert "reached, unused" in shown
    assert "never reached" in shown
    assert "a_0 to a_out: 0.700" in svg


def test_an_edge_is_as_wide_as_its_weight() -> None:
    svg = write_svg(picture_path(GRAPH, PATH))
    widths = dict(re.findall(r'data-edge="([^"]+)" stroke-width="([^"]+)"', svg))
    assert float(widths["a_0 a_1"]) > float(widths["a_0 a_out"]) == pytest.approx(0.6 + 1.4 * 0.7)


def test_a_margin_near_the_threshold_is_marked() -> None:
    near = path_of(GRAPH, {"a_0 a_out": 1.0}, margin=1e-5)
    assert "near the threshold" in write_svg(picture_path(GRAPH, near))
    assert "near the threshold" not in write_svg(picture_path(GRAPH, PATH))


def test_a_difference_shows_whose_edge_it_is() -> None:
    graph = stages(2)
    first = path_of(graph, {"a_0 a_1": 1.0, "a_1 a_out": 1.0, "a_0 a_out": 0.6})
    second = path_of(graph, {"a_0 a_2": 1.0, "a_2 a_out": 1.0, "a_0 a_out": 0.9})
    svg = write_svg(picture_difference(graph, first, second, names=("cat", "cup")))
    assert edge_marks(svg) == {
        "a_0 a_1": "first",
        "a_1 a_out": "first",
        "a_0 a_2": "second",
        "a_2 a_out": "second",
        "a_0 a_out": "both",
        "a_1 a_2": "dropped",
    }
    assert node_marks(svg) == {"a_0": "both", "a_1": "first", "a_2": "second", "a_out": "both"}
    legend = " | ".join(texts(svg))
    assert "only cat: 2 edges, 1 block" in legend
    assert "only cup: 2 edges, 1 block" in legend
    assert "both: 1 edge, 0 blocks" in legend
    assert "neither: 1 edge, 0 blocks" in legend
    assert "a_0 to a_out: 0.600 and 0.900" in svg


def test_every_picture_of_a_graph_has_the_same_places() -> None:
    graph = stages(2, 5)
    first, *others = (places(write_svg(picture)) for picture in pictures(graph))
    assert len(first) == 4 + 7 + 6 + 21
    assert all(other == first for other in others)


def test_a_layout_is_made_once_for_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = lay_out(GRAPH)
    monkeypatch.setattr(
        "dggraph.views.picture.lay_out", lambda *_args, **_options: pytest.fail("laid out again")
    )
    assert places(write_svg(picture_path(GRAPH, PATH, layout=layout))) == places(
        write_svg(picture_graph(GRAPH, layout=layout))
    )


def test_dot_has_the_places_and_colours_of_the_svg() -> None:
    """Centres of nodes agree up to the flipped y axis and the room above the graph."""
    graph = stages(2, 1)
    picture = pictures(graph)[1]
    source = str(render(graph, path_of(graph, {"a_0 a_1": 1.0})).source)
    assert (
        len(re.findall(r"^\tn\d+ -> n\d+ ", source, flags=re.MULTILINE))
        == 6 + 3
        == source.count("class=active") + source.count("class=dropped")
    )
    assert 'n0 -> n1 [arrowhead=normal class=active color="#0b6e8a" penwidth=2.00' in source
    boxes = [box for panel in picture.layout.panels for box in panel.boxes]
    centres = [
        float(x) for x in re.findall(r'^\tn\d+ \[.*pos="([\d.]+),', source, flags=re.MULTILINE)
    ]
    assert centres == pytest.approx([box.x + box.width / 2 for box in boxes], abs=0.06)


def test_rendering_is_what_notebooks_show() -> None:
    drawing = render(GRAPH, PATH, title="cat")
    bundle = drawing._repr_mimebundle_()
    assert edge_marks(bundle["image/svg+xml"])["a_0 a_1"] == "active"
    assert bundle["text/plain"] == drawing.source
    assert bundle["image/svg+xml"] in bundle["text/html"]
    assert set(drawing.copy()._repr_mimebundle_()) == {"text/plain"}


def test_a_graph_in_a_notebook_is_a_picture_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dggraph.render is render
    assert set(edge_marks(GRAPH._repr_html_()).values()) == {
        "static",
        "candidate",
    }

    def broken(_graph: DynamicGraph) -> str:
        raise RuntimeError

    for drawer in (broken, None):
        monkeypatch.setattr(DynamicGraph, "notebook_drawer", drawer)
        assert stages(1, name="<b>")._repr_html_().startswith("<pre>&lt;b&gt;: 1 stages")


def test_json_tells_every_edge() -> None:
    graph = stages(2)
    document = json.loads(_written(picture_path(graph, PATH, title="cat"), "json"))
    (stage,) = document["stages"]
    assert [
        (edge["source"], edge["target"], edge["mark"], edge["weights"]) for edge in stage["edges"]
    ][:2] == [
        ("a_0", "a_1", "active", [1.0]),
        ("a_0", "a_2", "dropped", [0.0]),
    ]
    assert [node["mark"] for node in stage["nodes"]] == [
        "live",
        "unused",
        "dead",
        "live",
    ]
    assert document["title"] == "cat"


def test_mermaid_tells_every_edge() -> None:
    chart = write_mermaid(picture_path(GRAPH, PATH))
    assert "n0 -->|1.00| n1" in chart
    assert "n0 -->|0.70| n3" in chart
    assert "n1 -.-> n2" in chart
    assert ":::unused" in chart
    assert ":::dead" in chart
    assert len(re.findall(r" -\.?->", chart)) == 6


def test_mermaid_leaves_faint_edges_out_where_it_would_refuse_the_chart() -> None:
    graph = stages(34)
    assert len(graph.edges("a")) == 630
    chart = write_mermaid(picture_path(graph, path_of(graph, {"a_0 a_5": 1.0, "a_5 a_out": 1.0})))
    assert len(re.findall(r" -\.?->", chart)) == 2
    assert "628 edges left out" in chart
    all_open = {
        f"{edge.source} {edge.target}": 1 + index / 1000
        for index, edge in enumerate(graph.edges("a"))
    }
    chart = write_mermaid(picture_path(graph, path_of(graph, all_open)))
    assert len(re.findall(r" -->\|", chart)) == 499
    assert "131 edges left out" in chart
    assert "|1.63|" in chart
    assert "|1.10|" not in chart


def _written(picture: Picture, kind: str) -> str:
    from dggraph.views.drawing import TEXT_WRITERS

    return TEXT_WRITERS[kind](picture)


def _hostile_picture(name: str) -> Picture:
    graph = stages(2, module_path=name, name=name)
    return picture_path(graph, path_of(graph, {"a_0 a_1": 1.0}), title=name, facts=[name])


def _readable(name: str, shown: str) -> bool:
    """Whether `shown` has the name, invisible characters as U+FFFD, or its beginning and a sign
    that more follows.
    """
    text = "".join(
        " " if c == "\u2028" else "\ufffd" if ord(c) < 32 or c in "\u202e\u200b\ufeff" else c
        for c in name
    )
    return text in shown or (len(text) > 10 and text[:8] in shown and "…" in shown)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_in_svg(name: str) -> None:
    svg = write_svg(_hostile_picture(name))
    known = {"svg", "g", "title", "text", "path", "rect", "style"}
    assert {element.tag.split("}")[-1] for element in ElementTree.fromstring(svg).iter()} <= known
    assert sum(_readable(name, text) for text in texts(svg)) >= 4
    assert not any(
        attribute.startswith("on")
        for element in ElementTree.fromstring(svg).iter()
        for attribute in element.attrib
    )


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_in_dot_and_png(name: str, tmp_path: Path) -> None:
    """The drawing program reads the DOT, gives the nodes and edges that are ours, and prints the
    names.
    """
    picture = _hostile_picture(name)
    draw(picture, tmp_path / "x.dot")
    command = dot_command()
    assert command is not None
    done = subprocess.run(
        [command, "-Tsvg", tmp_path / "x.dot"], capture_output=True, check=True, timeout=900
    )
    root = ElementTree.fromstring(done.stdout)
    shown = [
        (text.text or "").replace("\xa0", " ")
        for text in root.iter("{http://www.w3.org/2000/svg}text")
    ]
    titles = {title.text for title in root.iter("{http://www.w3.org/2000/svg}title")}
    assert {"n0", "n1", "n2", "n3"} <= titles
    assert not any("script" in element.tag for element in root.iter())
    if name.strip():
        assert any(_readable(name, text) for text in shown), shown
    draw(picture, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as page:
        assert page.width > 600


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_in_mermaid_json_and_terminal(name: str) -> None:
    picture = _hostile_picture(name)
    chart = write_mermaid(picture)
    plain = write_mermaid(_hostile_picture("x"))
    labels = re.compile(r'"[^"\n]*"')
    assert labels.sub('""', chart) == labels.sub('""', plain)
    assert _readable(name, mermaid_text(chart))
    assert json.loads(_written(picture, "json"))["title"] == name
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=400, no_color=True).print(
        for_terminal(name), end="", highlight=False
    )
    assert stream.getvalue() == visible(name)
    assert not re.search(r"[\x00-\x1f\u202e\u200b]", stream.getvalue())


@pytest.mark.parametrize("text", ["", "a", "x" * 500, "日" * 50, "🐈" * 9])
@pytest.mark.parametrize("width", [5.0, 40.0, 200.0])
def test_text_fits_its_width(text: str, width: float) -> None:
    shown = fit(text, 10, width)
    assert text_width(shown, 10) <= max(width, 20)
    assert shown == text or "…" in shown


def test_a_file_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'gif'"):
        draw(picture_graph(GRAPH), tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot make the folder '.*file'"):
        draw(picture_graph(GRAPH), tmp_path / "file" / "x.svg")


def test_formats_without_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dggraph.views.drawing.dot_command", lambda: None)
    for kind in ("svg", "dot", "mmd", "json"):
        draw(picture_graph(GRAPH), tmp_path / f"x.{kind}")
    with pytest.raises(
        MissingExtraError,
        match=r"png needs graphviz.*dggraph\[dot\].*\.svg, \.dot, \.mmd and \.json work",
    ):
        draw(picture_graph(GRAPH), tmp_path / "x.png")
    monkeypatch.setattr("dggraph.views.drawing.dot_command", lambda: "/bin/graphviz-pure")
    with pytest.raises(MissingExtraError, match="pdf needs the system's graphviz"):
        draw(picture_graph(GRAPH), tmp_path / "x.pdf")
    assert {file.suffix[1:] for file in tmp_path.iterdir()} == set(FORMATS) - {"png", "pdf"}


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_thumbnails(kind: str, tmp_path: Path) -> None:
    """A red image makes a red corner; a one-pixel line is not an error."""
    command = dot_command()
    if kind == "pdf" and (command is None or Path(command).stem != "dot"):
        pytest.skip("pdf needs the system's graphviz")
    for size in ((60, 60), (3000, 1)):
        picture = picture_path(GRAPH, PATH, thumbnail=Image.new("RGB", size, (255, 0, 0)))
        draw(picture, tmp_path / f"{size[0]}.{kind}")
    if kind == "png":
        with Image.open(tmp_path / "60.png") as page:
            assert page.getpixel((60, 60)) == (255, 0, 0)
            assert page.getpixel((page.width - 10, 60)) == (255, 255, 255)
    if kind == "svg":
        assert 'href="data:image/jpeg;base64,' in (tmp_path / "60.svg").read_text()


def test_a_path_of_another_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="6 weights in stage 'a', but the graph has 10 edges"):
        render(stages(3), PATH)
    with pytest.raises(GraphError, match="0 weights in stage 'b'"):
        picture_difference(stages(2, 1), PATH, PATH)


def test_a_graph_without_stages_is_drawn() -> None:
    graph = DynamicGraph("plain", stages=[], nodes=[], edges=[])
    assert "0 stages" in write_svg(picture_graph(graph))
    assert "0 stages" in str(render(graph).source)


def test_macs_have_three_digits() -> None:
    numbers = (999, 1000, 999_499, 999_999, 1_234_567, 999_950_000)
    assert [count(number) for number in numbers] == ["999", "1k", "999k", "1M", "1.23M", "1G"]
