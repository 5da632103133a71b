"""Repeated parts of a report, as values for its templates: images, common paths, classes."""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from dggraph.graph.atlas import Atlas, ClassPaths, CommonPath, Frequencies, Instance
from dggraph.graph.detection import Detected
from dggraph.graph.ir import DynamicGraph
from dggraph.views.box_overlay import place_outlines, tell_objects, write_outlines
from dggraph.views.captions import HIGH, WIDE, fit_size
from dggraph.views.escaping import fit, for_xml, text_width, visible
from dggraph.views.heatmap import draw_differences
from dggraph.views.layout import Layout
from dggraph.views.picture import NEAR_TIE
from dggraph.views.stage_diagram import draw_diagram

SMALL = 64
"""Images up to this side are not scaled down, and are shown with large pixels."""
EXAMPLE = 96
"""Side of images that are shown without objects."""
NUM_NAMED = 3
NAME_WIDTH = 92.0

Values = dict[str, object]
"""The values that a template prints, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A small image embedded in the page."""

    uri: str
    width: int
    height: int
    is_small: bool
    """Whether it is shown with large pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The data that every card needs."""

    graph: DynamicGraph
    atlas: Atlas
    layout: Layout
    thumbnails: Mapping[int, Image.Image]
    score: float
    """The least score of outlined objects."""
    shown: dict[int, Thumbnail] = field(default_factory=dict)
    """Thumbnails, created on first use."""


def node_names(graph: DynamicGraph) -> dict[str, str]:
    """Return the name of each node for readers: its module path in the backbone, or `out`."""
    blocks = (data["block"] for _, data in graph.nx.nodes(data=True))
    return {
        block.name: "out" if block.kind == "out" else block.module_path or block.name
        for block in blocks
    }


def static_part(atlas: Atlas) -> str:
    """Return what MACs ratios refer to: `network`, or `backbone` if only the backbone has paths."""
    return "backbone" if atlas.is_of_detector else "network"


def instance_values(context: Context, one: Instance) -> Values:
    """Return the values of one image: its facts and its path."""
    atlas, path = context.atlas, one.path
    kinds = [
        kind
        for kind, places in (("cheapest", atlas.cheapest), ("dearest", atlas.dearest))
        if one.index in places
    ]
    detected = one.detected.scoring(context.score) if one.detected is not None else None
    image = context.thumbnails.get(one.index)
    is_predicted = one.prediction is not None and one.probability is not None
    is_judged = is_predicted and atlas.accuracy is not None
    return {
        "index": one.index,
        "name": one.name,
        "label": one.label,
        "badges": kinds,
        "kinds": kinds + ["wrong"] * (is_judged and one.prediction != one.label),
        "thumbnail": thumbnail(context, one.index),
        "outlined": None
        if detected is None or image is None
        else outlined_image(image, detected, one.name),
        "prediction": one.prediction if is_predicted else None,
        "probability": one.probability,
        "is_judged": is_judged,
        "is_right": one.prediction == one.label,
        "objects": None if detected is None else tell_objects(detected),
        "share": path.macs / atlas.static_macs,
        "macs": path.macs,
        "active": len(path.active_edges(context.graph)),
        "total": sum(len(weights) for weights in path.weights.values()),
        "margin": path.margin,
        "spread": path.spread,
        "is_near_tie": path.margin < NEAR_TIE,
        "diagram": draw_diagram(context.graph, path, context.layout),
    }


def common_path_values(context: Context, rank: int, one: CommonPath) -> Values:
    """Return the values of a common path, with the first images that took it."""
    return {
        "rank": rank,
        "share": one.count / context.atlas.num_images,
        "count": one.count,
        "macs_share": one.path.macs / context.atlas.static_macs,
        "open": sum(weight != 0 for weights in one.path.weights.values() for weight in weights),
        "classes": [
            (fit(name, 13.5, 200), one_class / one.count)
            for name, one_class in one.classes[:NUM_NAMED]
        ],
        "more": max(0, len(one.classes) - NUM_NAMED),
        "examples": [thumbnail(context, index) for index in one.examples],
        "diagram": draw_diagram(context.graph, one.path, context.layout),
    }


def class_values(context: Context, one: ClassPaths, *, scale: float) -> Values:
    """Return the values of a class: how the paths of its images differ from those of all images."""
    atlas = context.atlas
    differences = largest_differences(context.graph, one.frequencies, atlas.frequencies)
    return {
        "name": one.name,
        "num_images": one.num_images,
        "right": None if one.num_correct is None else one.num_correct / one.num_images,
        "share": one.mean_macs / atlas.static_macs,
        "map": draw_differences(context.graph, one.frequencies, atlas.frequencies, scale=scale),
        "largest": [(label, signed(100 * by)) for label, by in differences[:NUM_NAMED]],
    }


def strip_values(context: Context, title: str, instances: Iterable[Instance]) -> Values:
    """Return the values of a row of small images with their MACs, each linked to its path."""
    return {
        "title": title,
        "images": [
            {
                "index": one.index,
                "name": one.name,
                "thumbnail": thumbnail(context, one.index),
                "share": one.path.macs / context.atlas.static_macs,
                "label": one.label or one.name,
            }
            for one in instances
        ],
    }


def signed(points: float) -> str:
    """Return a difference, for example `+12`, with a true minus sign."""
    return f"{points:+.0f}".replace("-", "\N{MINUS SIGN}")


def largest_differences(
    graph: DynamicGraph, some: Frequencies, overall: Frequencies
) -> list[tuple[str, float]]:
    """Return edges by how much more or less often they are open, the largest difference first.

    Edges with equal differences are in edge order.
    """
    paths = node_names(graph)
    found = [
        (
            f"{_end_of(paths[edge.source])} → {_end_of(paths[edge.target])}",
            some[stage][place] - overall[stage][place],
        )
        for stage in graph.stages
        for place, edge in enumerate(graph.edges(stage))
    ]
    return sorted((one for one in found if one[1] != 0), key=lambda one: -abs(one[1]))


def _end_of(path: str) -> str:
    """Return the end of a module path, as much of it as fits on the card of a class."""
    shown = visible(path)
    while text_width(shown, 12.5) > NAME_WIDTH:
        shown = "…" + shown.removeprefix("…")[1:]
    return shown


def thumbnail(context: Context, index: int) -> Thumbnail | None:
    """Return a small image for the page, or None if it is missing."""
    image = context.thumbnails.get(index)
    if image is not None and index not in context.shown:
        image = image.copy()
        image.thumbnail((EXAMPLE, EXAMPLE))
        context.shown[index] = Thumbnail(
            uri=_data_uri(image),
            width=image.width,
            height=image.height,
            is_small=max(image.size) <= SMALL,
        )
    return context.shown.get(index)


def outlined_image(image: Image.Image, detected: Detected, told: str) -> str:
    """Return an image as SVG, with the objects detected on it."""
    width, height = fit_size(detected.size, WIDE, HIGH)
    size = f'width="{width:.1f}" height="{height:.1f}"'
    outlines = "".join(write_outlines(place_outlines(detected, (0.0, 0.0, width, height))))
    told = for_xml(f"{told}, {tell_objects(detected)}")
    return (
        f'<svg viewBox="0 0 {width:.1f} {height:.1f}" {size} role="img" aria-label="{told}">'
        f'<image {size} href="{_data_uri(image)}"/>{outlines}</svg>'
    )


def _data_uri(image: Image.Image) -> str:
    is_small, stream = max(image.size) <= SMALL, io.BytesIO()
    image.save(stream, "PNG" if is_small else "JPEG", **({} if is_small else {"quality": 82}))
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{content}"
