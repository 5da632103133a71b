"""Graphs, paths and readers of pictures for the tests of `dggraph.views`."""

import re
from itertools import pairwise
from string import ascii_letters
from xml.etree import ElementTree

from dggraph.graph.ir import ActivatedPath, BlockNode, CandidateEdge, DynamicGraph, NodeKind, Stage
from dggraph.graph.wiring import wire

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "<script>alert(1)</script>", "<lambda> <map>", "<b>", "a&b", "&amp;", "]]>", "<!--", "-->", '"',
    "'", "\\", "\\N", "\\l\\n", "layer:1",
    "a->b", "{a|b}", "a[/b]", "[bold]x", "%s %d", "$(id)", "`id`", "; rm", "../../x", "a\tb",
    "a\nb", "a\x00b", "a\x1b[31mb", "\u202egnp.exe",
    "\u200bzero", "\ufeffbom", "\u2028line", "日本語", "é", "🐈", "x" * 300, " ", "<svg/onload=x>",
    "javascript:x", "{{7*7}}", "<?xml?>", "<>",
    "end", "a\"]:::x;click a", "%%{init: {}}%%", "#quot;", "</svg>", "]]]]><![CDATA[>", "a\\",
]  # fmt: skip


def stages(*depths: int, module_path: str | None = None, name: str = "net") -> DynamicGraph:
    """Complete stages `a`, `b`, .. of so many routed blocks, shape 4x8x8, 1000 MACs a block."""
    names = ascii_letters[: len(depths)]
    nodes, edges = [], []
    for stage, depth in zip(names, depths, strict=True):
        kinds: list[NodeKind] = ["entry", *["block"] * depth, "out"]
        for index, kind in enumerate(kinds):
            path = f"{stage}.{index}" if module_path is None else module_path
            macs = 0 if kind == "out" else 1000
            own = f"{stage}_{index if kind != 'out' else 'out'}"
            nodes.append(
                BlockNode(
                    name=own, stage=stage, kind=kind, shape=(4, 8, 8), macs=macs, module_path=path
                )
            )
    for stage in names:
        own_names = [node.name for node in nodes if node.stage == stage]
        edges += [CandidateEdge(source=a, target=b, is_static=True) for a, b in pairwise(own_names)]
    return wire(
        DynamicGraph(name, stages=[Stage(name=n) for n in names], nodes=nodes, edges=edges),
        "complete",
    )


def path_of(graph: DynamicGraph, active: dict[str, float], *, margin: float = 0.2) -> ActivatedPath:
    """A path that opens the named edges, for example {"a_0 a_2": 0.7}."""
    weights = {
        stage: tuple(active.get(f"{edge.source} {edge.target}", 0.0) for edge in graph.edges(stage))
        for stage in graph.stages
    }
    return ActivatedPath(weights=weights, macs=1_500_000, margin=margin)


def edge_marks(svg: str) -> dict[str, str]:
    """Edge -> mark, as an SVG draws them."""
    root = ElementTree.fromstring(svg)
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class")]
    return {
        edge: group.get("class", "")
        for group in groups
        for line in group
        if (edge := line.get("data-edge"))
    }


def node_marks(svg: str) -> dict[str, str]:
    """Node -> mark, as an SVG draws them."""
    groups = ElementTree.fromstring(svg).iter(f"{SVG}g")
    return {node: group.get("class", "") for group in groups if (node := group.get("data-node"))}


def places(svg: str) -> dict[str, str]:
    """Where every node and edge stands in an SVG."""
    root = ElementTree.fromstring(svg)
    found = {
        line.get("data-edge", ""): line.get("d", "")
        for line in root.iter(f"{SVG}path")
        if line.get("data-edge")
    }
    for group in root.iter(f"{SVG}g"):
        if (node := group.get("data-node")) and (box := group.find(f"{SVG}rect")) is not None:
            found[node] = f"{box.get('x')},{box.get('y')} {box.get('width')},{box.get('height')}"
    return found


def texts(svg: str) -> list[str]:
    """Every visible line of an SVG."""
    return ["".join(line.itertext()) for line in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def mermaid_text(chart: str) -> str:
    """A Mermaid chart with its numbered characters as they are shown."""
    return re.sub(r"#(\d+);", lambda match: chr(int(match.group(1))), chart)
