"""The sections of a report, as HTML whose names are escaped."""

import re
from collections.abc import Mapping

from dggraph.graph.ir import CandidateEdge, DynamicGraph
from dggraph.views.escaping import count, for_xml, plural
from dggraph.views.heatmap import draw_frequencies
from dggraph.views.histogram import draw_histogram
from dggraph.views.report_parts import (
    Context,
    name_of,
    node_names,
    percent,
    static_part,
    write_class,
    write_common_path,
    write_instance,
    write_strip,
)

NUM_FIRST, MAX_CLASSES, MAX_TABLE_CELLS = 4, 48, 4000


def write_health(context: Context) -> str:
    """What the gates do: warnings, how many images reach each block, edges that never change."""
    graph, gates = context.graph, context.atlas.gates
    warnings = "".join(f"<li>{_with_code(name_of(warning))}</li>" for warning in gates.warnings)
    verdict = (
        f'<ul class="warnings">{warnings}</ul>'
        if warnings
        else '<p class="fine">Nothing is wrong with the gates.</p>'
    )
    rows = "".join(
        "<tr><th"
        f' scope="row">{name_of(node.module_path or node.name)}</th><td>{for_xml(stage)}</td>'
        f"<td>{_bar(gates.live_fractions[node.name])}</td><td>{percent(gates.live_fractions[node.name])}</td></tr>"
        for stage in graph.stages
        for node in graph.nodes(stage)
        if node.kind == "block"
    )
    table = (
        '<div class="scroll tall" tabindex="0"><table><thead><tr><th scope="col">block</th><th'
        ' scope="col">stage</th><th scope="col" colspan="2">reached'
        f" by</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    total = sum(len(graph.edges(stage)) for stage in graph.stages)
    ties = sorted(gates.tie_fractions.items(), key=lambda tie: -tie[1])
    lists = [
        _edge_list(
            graph,
            f"{len(gates.always_open)} of {plural(total, 'edge')} open for every image",
            dict.fromkeys(gates.always_open),
        ),
        _edge_list(
            graph,
            f"{len(gates.always_closed)} of {plural(total, 'edge')} open for no image",
            dict.fromkeys(gates.always_closed),
        ),
    ]
    if ties:
        lists.append(
            _edge_list(
                graph,
                f"{plural(len(ties), 'edge')} sometimes within 1e-4 of the threshold",
                dict(ties),
            )
        )
    else:
        lists.append('<p class="note">No edge is ever within 1e-4 of the threshold.</p>')
    return (
        f'<section id="health"><h2>Gates</h2>{verdict}<div'
        f' class="columns"><div>{table}</div><div>{"".join(lists)}</div></div></section>'
    )


def _bar(share: float) -> str:
    told = f'role="img" aria-label="{share:.1%}"'
    return (
        f'<svg class="share" viewBox="0 0 100 8" width="100" height="8" {told}><rect class="ground"'
        f' width="100" height="8"/><rect class="bar" width="{100 * share:.1f}" height="8"/></svg>'
    )


def _edge_list(graph: DynamicGraph, title: str, edges: Mapping[CandidateEdge, float | None]) -> str:
    """A list to unfold, of edges with the share of images that goes with them."""
    if not edges:
        return f'<p class="note">{title}.</p>'
    paths = node_names(graph)
    rows = "".join(
        f"<li>{name_of(paths[edge.source])} →"
        f" {name_of(paths[edge.target])}{'' if share is None else f', {percent(share)}'}</li>"
        for edge, share in edges.items()
    )
    return f'<details><summary>{title}</summary><ul class="plain">{rows}</ul></details>'


def write_costs(context: Context) -> str:
    """The histogram of MACs, the cheapest and the dearest images."""
    atlas = context.atlas
    by_index = {one.index: one for one in atlas.instances}
    strips = [
        write_strip(context, title, (by_index[index] for index in places))
        for title, places in (("Cheapest", atlas.cheapest), ("Dearest", atlas.dearest))
    ]
    if by_index[atlas.cheapest[0]].path.macs == by_index[atlas.dearest[0]].path.macs:
        strips = ['<p class="note">Every image needs the same MACs.</p>']
    size = (
        ", at the size that it was traced at, whatever the image's" if atlas.is_of_detector else ""
    )
    return (
        '<section id="costs"><h2>MACs</h2><p class="note">Multiply-accumulates of each image\'s'
        " path, routers and aggregation included, "
        f"as a share of the static {static_part(atlas)}'s {count(atlas.static_macs)}{size}.</p>"
        "<div"
        f' class="columns"><div>{draw_histogram(atlas.histogram, atlas.mean_macs / atlas.static_macs)}</div>'
        f"<div>{''.join(strips)}</div></div></section>"
    )


def write_edges(context: Context) -> str:
    """How often each edge is open, one adjacency matrix a stage."""
    graph, atlas = context.graph, context.atlas
    maps = "".join(
        f'<figure><figcaption>{for_xml(stage)}</figcaption><div class="scroll" tabindex="0">'
        f"{draw_frequencies(graph, stage, atlas.frequencies[stage])}</div></figure>"
        for stage in graph.stages
    )
    return (
        '<section id="edges"><h2>Edges</h2><p class="note">Per cent of the images for which an'
        " edge is open. Row: source, column: target. A corner marks the backbone's own edges;"
        f' empty cells are not candidates.</p><div class="maps">{maps}</div></section>'
    )


def write_classes(context: Context) -> str:
    """Where the paths of each class differ from all images'."""
    graph, atlas = context.graph, context.atlas

    def distance(place: int) -> float:
        some = atlas.classes[place].frequencies
        return sum(
            abs(a - b)
            for stage in graph.stages
            for a, b in zip(some[stage], atlas.frequencies[stage], strict=True)
        )

    shown = sorted(
        sorted(range(len(atlas.classes)), key=lambda place: -distance(place))[:MAX_CLASSES]
    )
    scale = max(
        (
            abs(a - b)
            for place in shown
            for stage in graph.stages
            for a, b in zip(
                atlas.classes[place].frequencies[stage], atlas.frequencies[stage], strict=True
            )
        ),
        default=0,
    )
    scale = scale or 1.0
    cards = "".join(write_class(context, atlas.classes[place], scale=scale) for place in shown)
    left_out = ""
    if len(shown) < len(atlas.classes):
        left_out = (
            f" Of {len(atlas.classes)} classes, the {len(shown)} that differ most; the JSON file"
            " has all."
        )
    key = (
        '<span class="key"><svg width="34" height="12" aria-hidden="true"><rect class="warm"'
        f' width="34" height="12"/></svg> open more often, by up to {100 * scale:.0f} points</span>'
        ' <span class="key"><svg width="34" height="12" aria-hidden="true"><rect class="cool"'
        ' width="34" height="12"/></svg> less often</span>'
    )
    return (
        '<section id="classes"><h2>Classes</h2><p class="note">How often each edge is open among'
        " the images of a class, less how often it is among all images, in points. One square a"
        f" stage, as above: row = source, column = target.{left_out}</p><p"
        f' class="note">{key}</p><div'
        f' class="classes">{cards}</div>{_class_table(context)}</section>'
    )


def _class_table(context: Context) -> str:
    graph, atlas = context.graph, context.atlas
    edges = [
        (stage, place, edge)
        for stage in graph.stages
        for place, edge in enumerate(graph.edges(stage))
    ]
    if len(edges) * len(atlas.classes) > MAX_TABLE_CELLS:
        return '<p class="note">The table of all frequencies is in the JSON file.</p>'
    paths = node_names(graph)
    heads = "".join(f'<th scope="col">{name_of(one.name)}</th>' for one in atlas.classes)
    rows = "".join(
        f'<tr><th scope="row">{name_of(paths[edge.source])} → {name_of(paths[edge.target])}</th>'
        f"<td>{100 * atlas.frequencies[stage][place]:.0f}</td>"
        + "".join(f"<td>{100 * one.frequencies[stage][place]:.0f}</td>" for one in atlas.classes)
        + "</tr>"
        for stage, place, edge in edges
    )
    return (
        "<details><summary>All frequencies in numbers, per cent of the images</summary><div"
        ' class="scroll" tabindex="0"><table class="numbers"><thead><tr><th'
        ' scope="col">edge</th><th'
        f' scope="col">all</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>'
    )


def write_paths(context: Context) -> str:
    """The most common paths."""
    atlas = context.atlas
    cards = [
        write_common_path(context, rank, one) for rank, one in enumerate(atlas.most_common, start=1)
    ]
    shown = sum(one.count for one in atlas.most_common[:NUM_FIRST])
    more = ""
    if len(cards) > NUM_FIRST:
        more = (
            "<details><summary>The next"
            f" {len(cards) - NUM_FIRST}</summary>{''.join(cards[NUM_FIRST:])}</details>"
        )
    first = min(NUM_FIRST, len(cards))
    return (
        '<section id="paths"><h2>Most common paths</h2><p class="note">Images share a path where'
        " they open the same edges; weights still "
        f"differ. The {plural(first, 'path')} below {'take' if first > 1 else 'takes'}"
        f" {percent(shown / atlas.num_images)} of the images.</p>"
        f"{_legend('open edge')}"
        f"{''.join(cards[:NUM_FIRST])}{more}</section>"
    )


def write_images(context: Context) -> str:
    """Images with their paths, and the tools that the script shows."""
    atlas = context.atlas
    names = sorted({one.label for one in atlas.instances if one.label is not None})
    options = "".join(f'<option value="{for_xml(name)}">{for_xml(name)}</option>' for name in names)
    classes = (
        f'<label>Class <select id="class"><option value="">all</option>{options}</select></label>'
        if names
        else ""
    )
    wrong = '<option value="wrong">wrongly predicted</option>' if atlas.accuracy is not None else ""
    tools = (
        '<div id="tools" role="group" aria-label="Choose images" hidden><div'
        ' class="row"><label>Search <input id="search" type="search" placeholder="name, class,'
        f' prediction"></label>{classes}<label>Which <select id="kind"><option'
        ' value="">all</option><option value="cheapest">cheapest</option><option'
        f' value="dearest">dearest</option>{wrong}</select></label></div><div'
        ' class="row"><label>Image <select id="pick"></select></label><button type="button"'
        ' id="previous">Previous</button><button type="button" id="next">Next</button><label'
        ' class="check"><input type="checkbox" id="every"> show every match</label><output'
        ' id="matches" aria-live="polite"></output></div></div>'
    )
    cards = "".join(write_instance(context, one) for one in atlas.instances)
    outlined = (
        f" Outlined: objects of score {context.score:g} or more." if atlas.is_of_detector else ""
    )
    return (
        '<section id="images"><h2>Images</h2><p'
        f' class="note">{plural(len(atlas.instances), "image")}, spread evenly over the set, with'
        " the "
        "cheapest and the"
        f" dearest.{outlined}</p>{_legend('active edge, as wide as its weight')}{tools}{cards}</section>"
    )


def _legend(active: str) -> str:
    samples = (
        ('<path class="sample active" d="M0,6h26"/>', active),
        ('<path class="sample dropped" d="M0,6h26"/>', "dropped edge"),
        (
            '<g class="node dead"><rect x="1" y="1" width="24" height="10" rx="3"/></g>',
            "never reached",
        ),
        (
            '<g class="node unused"><rect x="1" y="1" width="24" height="10" rx="3"/></g>',
            "reached, unused",
        ),
    )
    keys = " ".join(
        f'<span class="key"><svg width="26" height="12" aria-hidden="true">{sample}</svg>'
        f" {text}</span>"
        for sample, text in samples
    )
    return f'<p class="note">{keys}</p>'


def _with_code(html: str) -> str:
    """`html` with what stands between backticks as code."""
    return re.sub("`([^`<>]*)`", r"<code>\1</code>", html)
