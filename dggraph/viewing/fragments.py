"""What the page of `dggraph view` shows: the page itself, and its parts that change."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dggraph.evaluation.recording import Prediction
from dggraph.graph.ir import ActivatedPath
from dggraph.models.origins import RANDOM
from dggraph.viewing.confinement import MAX_BYTES
from dggraph.viewing.gallery import MAX_PIXELS, Entry
from dggraph.viewing.runs import STEPS, Runs
from dggraph.views.box_overlay import tell_objects
from dggraph.views.escaping import fit, visible
from dggraph.views.heatmap import draw_frequencies
from dggraph.views.html_page import asset, render, write_page
from dggraph.views.layout import Layout
from dggraph.views.picture import NEAR_TIE
from dggraph.views.stage_diagram import define_curves, draw_diagram, draw_difference_diagram


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContext:
    """What every part of the page needs."""

    runs: Runs
    layout: Layout
    score: float
    """The least score of named objects, if a detector runs."""
    notes: tuple[str, ...] = ()
    """Sentences about the images."""


def write_view(context: PageContext) -> str:
    """Return the page."""
    predictor = context.runs.predictor
    net = predictor.net
    graph, own = net.graph, context.runs.own_thresholds
    return write_page(
        "view.html",
        f"{predictor.name}: paths",
        asset("picking.js") + asset("view.js"),
        styles=("report.css", "view.css"),
        fetches="own server",
        name=predictor.name,
        num_blocks=graph.num_blocks,
        num_edges=graph.num_edges,
        num_stages=len(graph.stages),
        static_macs=net.macs_table.static,
        is_lifted=graph.has_lifted_stages,
        is_random=net.weights_origin == RANDOM,
        origin=net.weights_origin,
        notes=context.notes,
        own_step=round(own[0] * STEPS),
        is_own_uniform=len(set(own)) == 1,
        max_megabytes=MAX_BYTES // 2**20,
        max_megapixels=MAX_PIXELS // 10**6,
        curves=define_curves(context.layout),
        maps=[
            (stage, draw_frequencies(graph, stage, [0.0] * len(graph.edges(stage))))
            for stage in graph.stages
        ],
        blocks=[
            (f"n{number}-{place}", node.module_path or node.name, stage)
            for number, stage in enumerate(graph.stages)
            for place, node in enumerate(graph.nodes(stage))
            if node.kind == "block"
        ],
    )


def facts_of(context: PageContext, found: Prediction) -> dict[str, Any]:
    """Return what the page computes with: which edges are active, which nodes are used.

    Edges and nodes are named as in the page, by stage and place: `e0-3`, `n0-2`.
    """
    net, path = context.runs.predictor.net, found.path
    graph, used = net.graph, path.useful_nodes(net.graph)
    best = found.classes[0] if found.classes else None
    return {
        "best": "" if best is None else visible(f"{best.label} {best.probability:.2f}"),
        "ratio": path.macs / net.macs_table.static,
        "edges": [
            f"e{number}-{place}"
            for number, stage in enumerate(graph.stages)
            for place, weight in enumerate(path.weights[stage])
            if weight != 0
        ],
        "nodes": [
            f"n{number}-{place}"
            for number, stage in enumerate(graph.stages)
            for place, node in enumerate(graph.nodes(stage))
            if node.kind == "block" and node.name in used
        ],
    }


def write_card(context: PageContext, entry: Entry, found: Prediction) -> str:
    """Return an image with its prediction, its facts and its path."""
    net, path = context.runs.predictor.net, found.path
    detected = None if found.detected is None else found.detected.scoring(context.score)
    marks = Counter(weight != 0 for weights in path.weights.values() for weight in weights)
    return render(
        "view_card.html",
        number=entry.number,
        name=entry.name,
        classes=[(fit(one.label, 13.5, 320), one.probability) for one in found.classes],
        objects=None if detected is None else tell_objects(detected),
        share=path.macs / net.macs_table.static,
        macs=path.macs,
        active=marks[True],
        total=marks.total(),
        margin=path.margin,
        is_near_tie=path.margin < NEAR_TIE,
        diagram=draw_diagram(net.graph, path, context.layout),
    )


def write_difference(
    context: PageContext, first: ActivatedPath, second: ActivatedPath, *, names: tuple[str, str]
) -> str:
    """Return what only one of two images uses."""
    graph = context.runs.predictor.net.graph
    return render(
        "view_difference.html",
        names=[fit(name, 13.5, 240) for name in names],
        diagram=draw_difference_diagram(graph, first, second, context.layout),
    )
