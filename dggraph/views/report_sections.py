"""The sections of a report, as values for its templates."""

from collections.abc import Mapping

from dggraph.graph.ir import CandidateEdge, DynamicGraph
from dggraph.views.escaping import plural
from dggraph.views.heatmap import draw_frequencies
from dggraph.views.histogram import draw_histogram
from dggraph.views.report_parts import (
    Context,
    Values,
    class_values,
    common_path_values,
    instance_values,
    node_names,
    strip_values,
)

NUM_FIRST, MAX_CLASSES, MAX_TABLE_CELLS, MAX_MOST_USED = 4, 48, 4000, 20


def gate_values(context: Context) -> Values:
    """Return the values of the gates: warnings, images per block, and edges that never change."""
    graph, gates = context.graph, context.atlas.gates
    total = graph.num_edges
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
        _edge_list(
            graph,
            f"{plural(len(ties), 'edge')} sometimes within 1e-4 of the threshold"
            if ties
            else "No edge is ever within 1e-4 of the threshold",
            dict(ties),
        ),
    ]
    return {
        "warnings": gates.warnings,
        "blocks": [
            (
                f"n{number}-{place}",
                node.module_path or node.name,
                stage,
                gates.live_fractions[node.name],
            )
            for number, stage in enumerate(graph.stages)
            for place, node in enumerate(graph.nodes(stage))
            if node.kind == "block"
        ],
        "lists": lists,
    }


def _edge_list(
    graph: DynamicGraph, title: str, edges: Mapping[CandidateEdge, float | None]
) -> Values:
    """Return edges by the names of their ends, each with a share of images."""
    paths = node_names(graph)
    return {
        "title": title,
        "edges": [(paths[edge.source], paths[edge.target], share) for edge, share in edges.items()],
    }


def cost_values(context: Context) -> Values:
    """Return the histogram of MACs, and the images with the fewest and the most MACs."""
    atlas = context.atlas
    by_index = {one.index: one for one in atlas.instances}
    extremes = [
        ("Cheapest", [by_index[index] for index in atlas.cheapest]),
        ("Dearest", [by_index[index] for index in atlas.dearest]),
    ]
    are_equal = extremes[0][1][0].path.macs == extremes[1][1][0].path.macs
    return {
        "histogram": draw_histogram(atlas.histogram, atlas.mean_macs / atlas.static_macs),
        "strips": [] if are_equal else [strip_values(context, *one) for one in extremes],
    }


def edge_values(context: Context) -> list[tuple[str, str]]:
    """Return the name of each stage and a matrix of how often its edges are open."""
    graph, atlas = context.graph, context.atlas
    return [
        (stage, draw_frequencies(graph, stage, atlas.frequencies[stage])) for stage in graph.stages
    ]


def most_used_values(context: Context) -> list[tuple[str, str, str, float]]:
    """Return the edges that are open most often, the first one most: key, ends and share."""
    graph, atlas = context.graph, context.atlas
    names = node_names(graph)
    edges = [
        (
            f"e{number}-{place}",
            names[edge.source],
            names[edge.target],
            atlas.frequencies[stage][place],
        )
        for number, stage in enumerate(graph.stages)
        for place, edge in enumerate(graph.edges(stage))
    ]
    return sorted(edges, key=lambda one: -one[3])[:MAX_MOST_USED]


def class_section_values(context: Context) -> Values:
    """Return how the paths of each class differ from those of all images."""
    graph, atlas = context.graph, context.atlas

    def distances(place: int) -> list[float]:
        some = atlas.classes[place].frequencies
        return [
            abs(a - b)
            for stage in graph.stages
            for a, b in zip(some[stage], atlas.frequencies[stage], strict=True)
        ]

    by_distance = sorted(range(len(atlas.classes)), key=lambda place: -sum(distances(place)))
    shown = sorted(by_distance[:MAX_CLASSES])
    scale = max((one for place in shown for one in distances(place)), default=0) or 1.0
    return {
        "scale": scale,
        "cards": [class_values(context, atlas.classes[place], scale=scale) for place in shown],
        "rows": _frequency_rows(context),
    }


def _frequency_rows(context: Context) -> list[tuple[str, str, list[float]]]:
    """Return the ends of each edge and how often it is open, overall and in each class.

    The list is empty if the table would have more than `MAX_TABLE_CELLS` cells.
    """
    graph, atlas = context.graph, context.atlas
    paths = node_names(graph)
    rows = [
        (
            paths[edge.source],
            paths[edge.target],
            [
                one[stage][place]
                for one in (atlas.frequencies, *(c.frequencies for c in atlas.classes))
            ],
        )
        for stage in graph.stages
        for place, edge in enumerate(graph.edges(stage))
    ]
    return rows if len(rows) * len(atlas.classes) <= MAX_TABLE_CELLS else []


def path_values(context: Context) -> Values:
    """Return the most common paths."""
    atlas = context.atlas
    cards = [
        common_path_values(context, rank, one)
        for rank, one in enumerate(atlas.most_common, start=1)
    ]
    shown = sum(one.count for one in atlas.most_common[:NUM_FIRST])
    return {
        "share": shown / atlas.num_images,
        "first": cards[:NUM_FIRST],
        "others": cards[NUM_FIRST:],
    }


def image_values(context: Context) -> Values:
    """Return images with their paths, and the classes that the script can filter by."""
    return {
        "labels": sorted({one.label for one in context.atlas.instances if one.label is not None}),
        "cards": [instance_values(context, one) for one in context.atlas.instances],
    }
