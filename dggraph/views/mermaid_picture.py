"""A picture as a Mermaid flowchart, as drawn in README files, issues and wikis."""

from collections import defaultdict
from itertools import pairwise

from dggraph.views.annotations import (
    EDGE_LOOKS,
    NODE_LOOKS,
    EdgeMark,
    Ends,
    Look,
    NodeMark,
    edge_width,
)
from dggraph.views.escaping import for_mermaid
from dggraph.views.picture import Picture, lines_of, mark_of

MAX_EDGES = 500
"""The most edges that Mermaid draws; only a page, not a chart, can raise it."""


def write_mermaid(picture: Picture) -> str:
    """Return the picture as Mermaid text.

    If there are too many edges for Mermaid, faint and light ones are left out, and a node says so.
    """
    lines = [
        "flowchart LR",
        f'  about["{"<br/>".join(for_mermaid(line) for line in _heading(picture))}"]',
    ]
    panels = picture.layout.panels
    ids = {
        box.card.name: f"n{index}"
        for index, box in enumerate(box for panel in panels for box in panel.boxes)
    }
    shown: set[NodeMark] = set()
    for index, panel in enumerate(panels):
        lines.append(f'  subgraph s{index}["{for_mermaid(" · ".join(panel.heading))}"]')
        for box in panel.boxes:
            label = "<br/>".join(for_mermaid(line) for line in lines_of(picture, box))
            shown.add(mark_of(picture, box))
            lines.append(f'    {ids[box.card.name]}["{label}"]:::{mark_of(picture, box)}')
        lines.append("  end")
    drawn, left_out = _choose_edges(picture, room=MAX_EDGES - len(panels))
    if left_out:
        lines.append(f'  left_out["{left_out} edges left out: Mermaid draws {MAX_EDGES} at most"]')
    styles: dict[str, list[int]] = defaultdict(list)
    for number, ((source, target), mark) in enumerate(drawn.items()):
        weights = picture.marks.weights.get((source, target), ())
        arrow = "-.->" if mark in ("dropped", "candidate") else "-->"
        lines.append(
            f"  {ids[source]} {arrow}{f'|{weights[0]:.2f}|' if mark == 'active' else ''}"
            f" {ids[target]}"
        )
        styles[
            f"stroke:{EDGE_LOOKS[mark].stroke},stroke-width:{edge_width(mark, weights):.1f}px"
        ].append(number)
    lines += [
        f"  {ids[one.boxes[-1].card.name]} -.- {ids[two.boxes[0].card.name]}"
        for one, two in pairwise(panels)
    ]
    lines += [
        f"  linkStyle {','.join(map(str, numbers))} {style}" for style, numbers in styles.items()
    ]
    lines += [
        f"  classDef {mark} {_style(look)}" for mark, look in NODE_LOOKS.items() if mark in shown
    ]
    return "\n".join(lines) + "\n"


def _choose_edges(picture: Picture, *, room: int) -> tuple[dict[Ends, EdgeMark], int]:
    """Return the drawn edges with their marks, and the number of edges left out.

    If there are more than `room`, faint edges are left out first, then the lightest ones.
    """
    edges = [curve.edge for panel in picture.layout.panels for curve in panel.curves]
    marks = {
        (edge.source, edge.target): picture.marks.edges[edge.source, edge.target] for edge in edges
    }
    if len(marks) <= room:
        return marks, 0
    strong = [ends for ends, mark in marks.items() if mark not in ("dropped", "candidate")]
    weights = {
        ends: max((abs(weight) for weight in picture.marks.weights.get(ends, ())), default=0.0)
        for ends in strong
    }
    heaviest = set(sorted(strong, key=lambda ends: -weights[ends])[:room])
    drawn = {ends: mark for ends, mark in marks.items() if ends in heaviest}
    return drawn, len(marks) - len(drawn)


def _heading(picture: Picture) -> list[str]:
    legend = [f"{entry.look.stroke}: {entry.text}" for entry in picture.legend]
    return [line for line in (picture.title, *picture.facts, picture.warning, *legend) if line]


def _style(look: Look) -> str:
    dash = ",stroke-dasharray:3 2" if look.is_dashed else ""
    return f"fill:{look.fill},stroke:{look.stroke},color:{look.stroke}{dash}"
