"""Edge frequencies as adjacency matrices, in SVG: row = source, column = target.

Colours come from the style sheet of the page.
"""

from collections.abc import Iterator, Sequence

from dggraph.graph.atlas import Frequencies
from dggraph.graph.ir import DynamicGraph
from dggraph.views.escaping import fit, for_xml, text_width

LABEL, HEAD = 110.0, 20.0
MIN_SIDE_FOR_NUMBERS = 24.0


def draw_frequencies(graph: DynamicGraph, stage: str, frequencies: Sequence[float]) -> str:
    """Draw how often each edge of `stage` is open, in per cent.

    Args:
        graph: The wired graph.
        stage: The name of the stage.
        frequencies: Shares of images, in the order of `graph.edges(stage)`.
    """
    nodes, number = graph.nodes(stage), list(graph.stages).index(stage)
    labels = {
        node.name: "out" if node.kind == "out" else node.module_path or node.name for node in nodes
    }
    side = 36.0 if len(nodes) <= 9 else 25.0 if len(nodes) <= 16 else 13.0
    names = [
        fit(f"v{index} {node.module_path or node.name}", 10, LABEL)
        for index, node in enumerate(nodes[:-1])
    ]
    left = max(text_width(name, 10) for name in names) + 8
    width, height = left + side * (len(nodes) - 1), HEAD + side * (len(nodes) - 1)
    parts = [_open(width + 2, height + 2, f"{stage}: how often each edge is open", "heat")]
    for index, name in enumerate(names):
        parts.append(
            f'<text x="{left - 6:g}" y="{HEAD + side * (index + 0.5) + 3.5:g}"'
            f' class="row">{for_xml(name)}</text>'
        )
    for index in range(1, len(nodes)):
        if (
            side >= MIN_SIDE_FOR_NUMBERS
            or (index % 5 == 0 and index < len(nodes) - 3)
            or index == len(nodes) - 1
        ):
            name = "out" if index == len(nodes) - 1 else f"v{index}"
            parts.append(
                f'<text x="{left + side * (index - 0.5):g}" y="{HEAD - 7:g}"'
                f' class="column">{name}</text>'
            )
    for row, column, place in _cells(graph, stage):
        edge, share = graph.edges(stage)[place], frequencies[place]
        x, y = left + side * (column - 1), HEAD + side * row
        told = (
            f"{edge.source} to {edge.target}: open for {share:.1%} of the"
            f" images{', static edge' if edge.is_static else ''}"
        )
        parts.append(
            _cell(
                x,
                y,
                side,
                "more",
                share,
                told,
                key=f"e{number}-{place}",
                name=f"{labels[edge.source]} → {labels[edge.target]}",
            )
        )
        if side >= MIN_SIDE_FOR_NUMBERS:
            shade = "strong" if share > 0.55 else "weak"
            parts.append(
                f'<text x="{x + side / 2:g}" y="{y + side / 2 + 3.5:g}" class="number'
                f' {shade}">{round(100 * share)}</text>'
            )
        if edge.is_static:
            parts.append(f'<path class="static" d="M{x + side - 3:g},{y + 3:g}h-5l5,5z"/>')
    return "".join((*parts, "</svg>"))


def draw_differences(
    graph: DynamicGraph, some: Frequencies, overall: Frequencies, *, scale: float
) -> str:
    """Draw how much more or less often edges are open for `some` images than overall.

    All stages are side by side.

    Args:
        graph: The wired graph.
        some: Shares among some images.
        overall: Shares among all images.
        scale: The difference with the full colour.
    """
    sizes = {stage: len(graph.nodes(stage)) - 1 for stage in graph.stages}
    gap = 10.0
    side = max(5.0, min(18.0, (206.0 - gap * (len(sizes) - 1)) / sum(sizes.values())))
    width = side * sum(sizes.values()) + gap * (len(sizes) - 1)
    parts = [
        _open(
            width + 1,
            side * max(sizes.values()) + 1,
            "differences of edge frequencies from all images",
            "heat small",
        )
    ]
    left = 0.5
    for stage, size in sizes.items():
        for row, column, place in _cells(graph, stage):
            edge = graph.edges(stage)[place]
            share, difference = some[stage][place], some[stage][place] - overall[stage][place]
            told = f"{edge.source} to {edge.target}: {share:.0%}, {100 * difference:+.1f} points"
            kind = "warm" if difference > 0 else "cool"
            parts.append(
                _cell(
                    left + side * (column - 1),
                    side * row + 0.5,
                    side,
                    kind,
                    min(1.0, abs(difference) / scale),
                    told,
                )
            )
        left += side * size + gap
    return "".join((*parts, "</svg>"))


def _cells(graph: DynamicGraph, stage: str) -> Iterator[tuple[int, int, int]]:
    """Yield (row, column, position) of every candidate edge."""
    position = {node.name: index for index, node in enumerate(graph.nodes(stage))}
    for place, edge in enumerate(graph.edges(stage)):
        yield position[edge.source], position[edge.target], place


def _open(width: float, height: float, told: str, kind: str) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f'<svg class="{kind}" {size} role="img" aria-label="{for_xml(told)}">'


def _cell(
    x: float,
    y: float,
    side: float,
    kind: str,
    opacity: float,
    told: str,
    *,
    key: str = "",
    name: str = "",
) -> str:
    named = f' data-edge="{key}" data-name="{for_xml(name)}"' if key else ""
    place = f'x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}"'
    return (
        f'<rect class="cell {kind}"{named} {place}'
        f' fill-opacity="{opacity:.3g}"><title>{for_xml(told)}</title></rect>'
    )
