"""Parts of a report that repeat: an image with its path, a path that many images share, a class of
images.
"""

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
from dggraph.views.escaping import count, fit, for_xml, text_width, visible
from dggraph.views.heatmap import draw_differences
from dggraph.views.layout import Layout
from dggraph.views.picture import NEAR_TIE
from dggraph.views.stage_diagram import draw_diagram

SMALL = 64
"""Images up to this side are kept as they are and shown in large pixels."""
EXAMPLE = 96
"""Side of images that are shown without objects."""
NUM_NAMED = 3
NAME_WIDTH = 92.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every card needs."""

    graph: DynamicGraph
    atlas: Atlas
    layout: Layout
    thumbnails: Mapping[int, Image.Image]
    score: float
    """The least of outlined objects."""
    uris: dict[int, str] = field(default_factory=dict)
    """Thumbnails as data URIs, made when first needed."""


def percent(share: float, *, digits: int = 1) -> str:
    """For example `61.3 %`, with a space that does not break."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def signed(points: float) -> str:
    """A difference, for example `+12`, with a true minus sign."""
    return f"{points:+.0f}".replace("-", "\N{MINUS SIGN}")


def node_names(graph: DynamicGraph) -> dict[str, str]:
    """What readers call each node: its place in the backbone; `out` is the one of the edge's own
    stage.
    """
    blocks = (data["block"] for _, data in graph.nx.nodes(data=True))
    return {
        block.name: "out" if block.kind == "out" else block.module_path or block.name
        for block in blocks
    }


def static_part(atlas: Atlas) -> str:
    """What the MACs are a share of: only the backbone of a detector has paths."""
    return "backbone" if atlas.is_of_detector else "network"


def name_of(text: str) -> str:
    """A name from outside: escaped, and kept from turning the text around it."""
    return f"<bdi>{for_xml(text)}</bdi>"


def write_instance(context: Context, one: Instance) -> str:
    """An image, its facts and its path."""
    atlas, path = context.atlas, one.path
    kinds = [
        kind
        for kind, places in (("cheapest", atlas.cheapest), ("dearest", atlas.dearest))
        if one.index in places
    ]
    facts: list[str] = []
    detected = one.detected.scoring(context.score) if one.detected is not None else None
    image = thumbnail(context, one.index, one.name)
    if detected is not None and one.index in context.thumbnails:
        image = outlined_image(context.thumbnails[one.index], detected, one.name)
    if one.label is not None:
        facts.append(f"class {name_of(one.label)}")
    if one.prediction is not None and one.probability is not None:
        verdict = ""
        if atlas.accuracy is not None:
            is_right = one.prediction == one.label
            kinds += [] if is_right else ["wrong"]
            verdict = (
                '<span class="right"> ✓</span>'
                if is_right
                else '<span class="wrong"> ✗ wrong</span>'
            )
        facts.append(f"predicted {name_of(one.prediction)} {one.probability:.2f}{verdict}")
    if detected is not None:
        facts.append(name_of(tell_objects(detected)))
    active = len(path.active_edges(context.graph))
    total = sum(len(weights) for weights in path.weights.values())
    facts.append(
        f"<strong>{percent(path.macs / atlas.static_macs)}</strong> of the static MACs"
        f" ({count(path.macs)})"
    )
    facts.append(f"{active} of {total} edges active")
    facts.append(f"margin {path.margin:.3g}")
    badges = "".join(f'<span class="badge">{kind}</span>' for kind in kinds if kind != "wrong")
    near = (
        '<p class="warning">Margin near the threshold: in another batch this image may take another'
        " path.</p>"
        if path.margin < NEAR_TIE
        else ""
    )
    return (
        f'<article class="instance" id="image-{one.index}" data-kinds="{" ".join(kinds)}"'
        f' data-class="{for_xml(one.label or "")}" '
        f'data-name="{for_xml(one.name)}"><div class="head">{image}'
        f"<div><h3>{name_of(one.name)}{badges}</h3><p>{' · '.join(facts)}</p>{near}</div></div>"
        f"{draw_diagram(context.graph, path, context.layout)}</article>"
    )


def write_common_path(context: Context, rank: int, one: CommonPath) -> str:
    """A path that many images share, with the first images that took it."""
    atlas = context.atlas
    shares = [
        f"{name_of(fit(name, 13.5, 200))} {percent(one_class / one.count, digits=0)}"
        for name, one_class in one.classes[:NUM_NAMED]
    ]
    more = len(one.classes) - NUM_NAMED
    classes = (
        f"<p>{', '.join(shares)}{f' and {more} more' if more > 0 else ''}</p>" if shares else ""
    )
    examples = "".join(
        thumbnail(context, index, f"example {number} of path {rank}")
        for number, index in enumerate(one.examples, start=1)
    )
    active = sum(weight != 0 for weights in one.path.weights.values() for weight in weights)
    return (
        '<article class="common"><div class="head"><div><h3>Path'
        f" {rank}</h3><p><strong>{percent(one.count / atlas.num_images)}</strong> "
        f"of the images ({one.count:,}) · {percent(one.path.macs / atlas.static_macs)} of the"
        f" static MACs · {active} edges open</p>"
        f"{classes}</div><div"
        f' class="strip">{examples}</div></div>{draw_diagram(context.graph, one.path, context.layout)}</article>'
    )


def write_class(context: Context, one: ClassPaths, *, scale: float) -> str:
    """A class: where its images' paths differ from all images'."""
    atlas = context.atlas
    number = f"{one.num_images:,} image{'s' * (one.num_images != 1)}"
    right = (
        f", {percent(one.num_correct / one.num_images)} right"
        if one.num_correct is not None
        else ""
    )
    largest = [
        f"<li>{for_xml(label)} <strong>{signed(100 * difference)}</strong></li>"
        for label, difference in largest_differences(
            context.graph, one.frequencies, atlas.frequencies
        )[:NUM_NAMED]
    ]
    kept = percent(one.mean_macs / atlas.static_macs)
    return (
        '<article class="class"><h3'
        f' title="{for_xml(one.name)}">{name_of(one.name)}</h3><p>{number}{right}<br>{kept} of the'
        " static"
        f" MACs</p>{draw_differences(context.graph, one.frequencies, atlas.frequencies, scale=scale)}<ul"
        f' class="plain">{"".join(largest)}</ul></article>'
    )


def largest_differences(
    graph: DynamicGraph, some: Frequencies, overall: Frequencies
) -> list[tuple[str, float]]:
    """Edges by how much more or less often they are open, the largest difference first; equal ones
    in edge order.
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
    """The end of a module path, which tells more than its beginning, as long as a class's card has
    room for.
    """
    shown = visible(path)
    while text_width(shown, 12.5) > NAME_WIDTH:
        shown = "…" + shown.removeprefix("…")[1:]
    return shown


def write_strip(context: Context, title: str, instances: Iterable[Instance]) -> str:
    """A row of small images with their MACs, each leading to its path."""
    cells = "".join(
        f'<li><a href="#image-{one.index}">{thumbnail(context, one.index, one.name)}'
        f"<span>{percent(one.path.macs / context.atlas.static_macs)}</span><small>{name_of(one.label or one.name)}</small></a></li>"
        for one in instances
    )
    return f'<h3>{title}</h3><ul class="extremes">{cells}</ul>'


def thumbnail(context: Context, index: int, told: str) -> str:
    """A small image inside the page; a note where it is not there."""
    image = context.thumbnails.get(index)
    if image is None:
        return '<span class="missing">no image</span>'
    image = image.copy()
    image.thumbnail((EXAMPLE, EXAMPLE))
    if index not in context.uris:
        context.uris[index] = _data_uri(image)
    kind = ' class="pixels"' if max(image.size) <= SMALL else ""
    return (
        f'<img{kind} src="{context.uris[index]}" width="{image.width}" height="{image.height}"'
        f' alt="{for_xml(told)}">'
    )


def outlined_image(image: Image.Image, detected: Detected, told: str) -> str:
    """An image inside the page, with the objects that were found on it."""
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
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"
