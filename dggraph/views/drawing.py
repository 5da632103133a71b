"""Draw a graph, or the path that one instance took through it, with graphviz.

One layout a graph: with and without a path the same nodes and edges are written in the same order, only their looks change. Ids are
our own and every text is escaped: module paths, labels and file names are hostile.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import graphviz

from dggraph.errors import InputError, MissingExtraError
from dggraph.graph.ir import ActivatedPath, BlockNode, CandidateEdge, DynamicGraph

MAX_LABEL = 40
NEAR_TIE = 1e-4
DRAW_SECONDS = 120
INK, FAINT, GREY, ACCENT, UNUSED = "#1f2933", "#c6ced6", "#9aa5b1", "#0b6e8a", "#b7791f"


def render(graph: DynamicGraph, path: ActivatedPath | None = None, *, title: str = "") -> graphviz.Digraph:
    """The graph, or one instance's path, as DOT; building it needs no dot binary.

    Without a path static edges are dark and other candidate edges dashed. With one, active edges are coloured and as wide as their
    weight, dropped edges faint, nodes the instance never reached grey, and nodes computed without reaching `out` marked unused.

    Args:
        graph: what may connect.
        path: what did, for one instance.
        title: first line of the caption.
    """
    drawing = graphviz.Digraph("dggraph")
    drawing.attr(rankdir="LR", bgcolor="white", fontname="Helvetica", fontsize="13", labelloc="b", labeljust="l", nodesep="0.32")
    drawing.attr(ranksep="0.42", newrank="true", splines="true", label=_caption(graph, path, title))
    drawing.attr("node", fontname="Helvetica", fontsize="11", shape="box", style="filled,rounded", margin="0.12,0.07", height="0.3")
    drawing.attr("edge", arrowsize="0.55", fontname="Helvetica", fontsize="9")
    ids = {name: f"n{index}" for index, name in enumerate(graph.nx)}
    live = path.live_nodes(graph) if path is not None else frozenset(graph.nx)
    useful = path.useful_nodes(graph) if path is not None else live
    previous = ""
    for index, stage in enumerate(graph.stages.values()):
        with drawing.subgraph(name=f"cluster_{index}") as cluster:
            heading = f"{stage.name}  ·  {len(graph.edges(stage.name))} edges" + ("  ·  lifted" if stage.residual == "lift" else "")
            cluster.attr(label=_text(heading), style="rounded", color=FAINT, fontcolor=INK, fontsize="12", margin="14")
            for node in graph.nodes(stage.name):
                looks = _node_looks(node, is_live=node.name in live, is_useful=node.name in useful)
                cluster.node(
                    ids[node.name],
                    label=_label(node),
                    tooltip=_text(node.module_path or node.name, 300),
                    group=f"g{index}",
                    **looks,
                )
            weights = path.weights[stage.name] if path is not None else (None,) * len(graph.edges(stage.name))
            order = {node.name: place for place, node in enumerate(graph.nodes(stage.name))}
            for edge, weight in zip(graph.edges(stage.name), weights, strict=True):
                is_next = order[edge.target] - order[edge.source] == 1
                cluster.edge(
                    ids[edge.source],
                    ids[edge.target],
                    weight="20" if is_next else "1",
                    tooltip=_text(f"{edge.source} to {edge.target}" + ("" if weight is None else f": {weight:.3f}"), 300),
                    **_edge_looks(edge, weight),
                )
        first, last = graph.nodes(stage.name)[0].name, graph.nodes(stage.name)[-1].name
        if previous:
            drawing.edge(ids[previous], ids[first], color=GREY, style="dotted", arrowhead="none", weight="20")
        previous = last
    return drawing


def draw(drawing: graphviz.Digraph, file: str | os.PathLike[str]) -> None:
    """Write `drawing` to `file` in the format its suffix names: .svg, .png, .dot, and .pdf with the system's dot.

    Raises:
        InputError: another suffix, or the drawing program failed.
        MissingExtraError: neither `dot` nor `graphviz-pure` is here.
    """
    file = Path(file)
    kind = file.suffix.removeprefix(".").lower()
    if kind not in ("svg", "png", "pdf", "dot", "gv"):
        raise InputError(f"{file.name!r}: cannot draw {kind or 'a file without suffix'!r}; use .svg, .png, .pdf or .dot.")
    content = drawing.source.encode() if kind in ("dot", "gv") else _run_dot(drawing.source, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.replace(scratch, file)
    except OSError:
        Path(scratch).unlink(missing_ok=True)
        raise


def dot_command() -> str | None:
    """The system's `dot`, else `graphviz-pure` from PATH or beside this Python, else None."""
    return (
        shutil.which("dot") or shutil.which("graphviz-pure") or shutil.which("graphviz-pure", path=str(Path(sys.executable).parent))
    )


def _run_dot(source: str, kind: str) -> bytes:
    command = dot_command()
    if command is None or (kind == "pdf" and Path(command).stem != "dot"):
        need = "pdf needs the system's graphviz" if command is not None else "drawing needs graphviz"
        raise MissingExtraError(f"{need}: install it, or pip install 'dggraph[dot]' for svg and png. A .dot file always works.")
    try:
        done = subprocess.run([command, f"-T{kind}"], input=source.encode(), capture_output=True, timeout=DRAW_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{command} took more than {DRAW_SECONDS} s; write a .dot file, or draw fewer edges.") from error
    if done.returncode != 0 or not done.stdout:
        raise InputError(f"{command} failed: {done.stderr.decode(errors='replace').strip()[:300]}")
    return done.stdout


def _node_looks(node: BlockNode, *, is_live: bool, is_useful: bool) -> dict[str, str]:
    fill = "#ffffff" if node.kind != "block" else "#e6f2f5"
    if not is_live:
        return {"fillcolor": "#f3f4f6", "color": FAINT, "fontcolor": GREY, "style": "filled,rounded,dashed"}
    if not is_useful:
        return {"fillcolor": "#fdf3e1", "color": UNUSED, "fontcolor": UNUSED, "style": "filled,rounded,dashed"}
    return {"fillcolor": fill, "color": INK, "fontcolor": INK, "style": "filled,rounded"}


def _edge_looks(edge: CandidateEdge, weight: float | None) -> dict[str, str]:
    if weight is None:
        if edge.is_static:
            return {"color": INK, "penwidth": "1.4", "style": "solid"}
        return {"color": GREY, "penwidth": "0.7", "style": "dashed"}
    if weight == 0:
        return {"color": FAINT, "penwidth": "0.5", "style": "dashed"}
    return {"color": ACCENT, "penwidth": f"{min(0.6 + 1.8 * abs(weight), 6):.2f}", "style": "solid"}


def _caption(graph: DynamicGraph, path: ActivatedPath | None, title: str) -> str:
    lines = [title] if title else []
    if path is None:
        lines.append(f"{graph.name}: solid = the backbone's own edges, dashed = candidate edges")
    else:
        active = sum(weight != 0 for weights in path.weights.values() for weight in weights)
        total = sum(len(weights) for weights in path.weights.values())
        near = "  ·  margin near the threshold" if path.margin < NEAR_TIE else ""
        lines.append(
            f"{graph.name}: {active} of {total} edges active  ·  {_count(path.macs)} MACs  ·  margin {path.margin:.3g}{near}"
        )
        if path.live_nodes(graph) - path.useful_nodes(graph):
            lines.append("amber, dashed: computed, but unused")
    return "".join(f"{_text(line, 160)}\\l" for line in lines)


def _label(node: BlockNode) -> str:
    if node.kind == "out":
        return "out"
    shape = "×".join(str(size) for size in node.shape)
    return f"{_text(node.module_path)}\\n{shape}" + (f"\\n{_count(node.macs)}" if node.macs else "")


def _count(macs: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if macs >= size:
            return f"{macs / size:.3g}{unit}"
    return str(macs)


def _text(text: str, limit: int = MAX_LABEL) -> str:
    """`text` as DOT prints it letter by letter: no escapes, no HTML, no entities, control and direction marks made visible."""
    visible = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char)[0] == "C" else char for char in text)
    if len(visible) > limit:
        visible = f"{visible[: limit // 2]}…{visible[-(limit // 2 - 1) :]}"
    escaped = visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    quoted: str = graphviz.escape(escaped)
    return quoted
