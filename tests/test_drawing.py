"""Pictures: one layout re-coloured, every text escaped, clear errors without a drawing program."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_graph import static_chain

from dggraph.errors import InputError, MissingExtraError
from dggraph.graph.ir import ActivatedPath, BlockNode, DynamicGraph
from dggraph.graph.wiring import wire
from dggraph.views.drawing import draw, render

PATH = ActivatedPath(weights={"s": (1.0, 0.0, 0.0, 0.7, 0.0, 0.0)}, macs=1_500_000, margin=0.2)
HOSTILE = [
    "<script>alert(1)</script>", "<lambda> <map>", "<b>", "a&b", "&amp;", "]]>", "<!--", "-->", '"', "'", "\\", "\\N", "\\l\\n", "layer:1",
    "a->b", "{a|b}", "[/b]", "[bold]x", "%s %d", "$(id)", "`id`", "; rm", "../../x", "a\tb", "a\nb", "a\x00b", "a\x1b[31mb", "\u202egnp.exe",
    "\u200bzero", "\ufeffbom", "日本語", "é", "🐈", "x" * 300, " ", "<svg/onload=x>", "javascript:x", "{{7*7}}", "<?xml?>", "<>",
]  # fmt: skip


def skeleton(source: str) -> list[str]:
    """Nodes, edges and clusters in order, without their looks."""
    return re.findall(r"^\s*(?:subgraph \w+|n\d+ -> n\d+|n\d+)", source, flags=re.MULTILINE)


def test_one_layout_with_and_without_a_path() -> None:
    graph = wire(static_chain(2), "complete")
    assert skeleton(render(graph).source) == skeleton(render(graph, PATH, title="x").source)
    assert len(skeleton(render(graph).source)) == 1 + 4 + 6


def test_looks_say_active_dropped_dead_and_unused() -> None:
    lines = render(wire(static_chain(2), "complete"), PATH).source.splitlines()
    by_start = {match.group(): line for line in lines if (match := re.match(r"\s*n\d+(?: -> n\d+)?(?= \[)", line))}
    looks = {key.strip(): line for key, line in by_start.items()}
    assert "penwidth=2.40" in looks["n0 -> n1"] and "style=solid" in looks["n0 -> n1"]
    assert "penwidth=0.5" in looks["n0 -> n2"] and "style=dashed" in looks["n0 -> n2"]
    assert "penwidth=1.86" in looks["n0 -> n3"]
    assert "#b7791f" in looks["n1"] and "#f3f4f6" in looks["n2"] and "dashed" not in looks["n0"]
    assert "unused" in "".join(lines) and "2 of 6 edges active" in "".join(lines) and "1.5M" in "".join(lines)


def test_a_margin_near_the_threshold_is_marked() -> None:
    graph = wire(static_chain(2), "complete")
    near = ActivatedPath(weights=PATH.weights, macs=1, margin=1e-5)
    assert "near the threshold" in render(graph, near).source and "near the threshold" not in render(graph, PATH).source


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_names_are_shown_and_nothing_more(number: int, tmp_path: Path) -> None:
    name = HOSTILE[number]
    plain = static_chain(1)
    nodes = [BlockNode(name=n.name, stage=n.stage, kind=n.kind, shape=n.shape, macs=1, module_path=name) for n in plain.nodes("s")]
    graph = DynamicGraph(name, stages=plain.stages.values(), nodes=nodes, edges=plain.edges("s"))
    draw(render(graph, title=name), tmp_path / "x.svg")
    root = ElementTree.parse(tmp_path / "x.svg").getroot()
    known = {"svg", "g", "title", "text", "path", "polygon", "a", "ellipse", "polyline"}
    assert {element.tag.split("}")[-1] for element in root.iter()} <= known
    shown = [element.text or "" for element in root.iter() if element.tag.endswith("}text")]
    visible = "".join("\ufffd" if ord(c) < 32 or c in "\u202e\u200b\ufeff\x7f" else c for c in name)
    if name.strip():
        assert any((visible[:20] if len(name) > 40 else visible) in text.replace("\xa0", " ") for text in shown), shown


def test_a_file_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = render(static_chain(1))
    with pytest.raises(InputError, match="'gif'"):
        draw(drawing, tmp_path / "x.gif")
    monkeypatch.setattr("dggraph.views.drawing.dot_command", lambda: None)
    with pytest.raises(MissingExtraError, match=r"dggraph\[dot\]"):
        draw(drawing, tmp_path / "x.svg")
    draw(drawing, tmp_path / "x.dot")
    assert (tmp_path / "x.dot").read_text() == drawing.source
    assert [file.name for file in tmp_path.iterdir()] == ["x.dot"]
