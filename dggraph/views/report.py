"""The report of an atlas: one HTML file that needs no network access and no script to be read.

All names in it are escaped.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import log2

from PIL import Image

from dggraph.graph.atlas import Atlas
from dggraph.graph.ir import DynamicGraph
from dggraph.views.atlas_json import write_numbers
from dggraph.views.escaping import count, plural
from dggraph.views.html_page import asset, percent, render, write_page
from dggraph.views.layout import lay_out
from dggraph.views.report_parts import Context, static_part
from dggraph.views.report_sections import (
    class_section_values,
    cost_values,
    edge_values,
    gate_values,
    image_values,
    most_used_values,
    path_values,
)
from dggraph.views.stage_diagram import define_curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report as HTML and as JSON, made by `make_report`; notebooks show it.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> images = dggraph.evaluation.open_image_set(".")
        >>> found = dggraph.evaluation.collect_atlas(net, images)
        >>> report = dggraph.evaluation.make_report(net.graph, found.atlas, found.thumbnails)
        >>> report.html.lower().startswith("<!doctype html>")
        True
    """

    summary: str
    """One line of text."""
    html: str
    """A complete document."""
    json: str
    """The same numbers as JSON."""

    def __str__(self) -> str:
        return self.summary

    def __repr__(self) -> str:
        return f"<Report: {self.summary}>"

    def _repr_html_(self) -> str:
        """Return the document in an isolated frame for notebooks. Never raises."""
        with suppress(Exception):
            return render("frame.html", document=self.html, title="Atlas of paths")
        return "<pre>This report cannot be shown.</pre>"


def make_report(
    graph: DynamicGraph, atlas: Atlas, thumbnails: Mapping[int, Image.Image], *, score: float = 0.5
) -> Report:
    """Write the report of `atlas`.

    Args:
        graph: The wired graph.
        atlas: The collected paths.
        thumbnails: Small images by their index in the set; the report marks missing ones.
        score: The least score of outlined objects, if a detector ran.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> images = dggraph.evaluation.open_image_set(".")
        >>> found = dggraph.evaluation.collect_atlas(net, images)
        >>> report = dggraph.evaluation.make_report(net.graph, found.atlas, found.thumbnails)
        >>> "1 image" in str(report)
        True
    """
    context = Context(
        graph=graph, atlas=atlas, layout=lay_out(graph), thumbnails=thumbnails, score=score
    )
    kept = atlas.mean_macs / atlas.static_macs
    summary = (
        f"{atlas.network} on {atlas.images}: {plural(atlas.num_images, 'image')}, {kept:.1%} of the"
        f" static {static_part(atlas)}'s MACs, {plural(atlas.num_paths, 'path')},"
        f" {atlas.path_entropy_bits:.2f} bits"
    )
    html = write_page(
        "atlas.html",
        f"Atlas: {atlas.network} on {atlas.images}",
        asset("picking.js") + asset("report.js"),
        atlas=atlas,
        is_lifted=graph.has_lifted_stages,
        static_part=static_part(atlas),
        score=score,
        curves=define_curves(context.layout),
        tiles=_tiles(atlas),
        gates=gate_values(context),
        costs=cost_values(context),
        maps=edge_values(context),
        most_used=most_used_values(context),
        classes=class_section_values(context),
        paths=path_values(context),
        images=image_values(context),
    )
    return Report(summary=summary, html=html, json=write_numbers(graph, atlas, score))


def _tiles(atlas: Atlas) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and note of each number at the top."""
    most = log2(atlas.num_images)
    skipped = f"{atlas.num_skipped:,} skipped" if atlas.num_skipped else "all could be read"
    yield "images", f"{atlas.num_images:,}", skipped
    yield (
        "MACs ratio",
        percent(atlas.mean_macs / atlas.static_macs),
        f"± {percent(atlas.std_macs / atlas.static_macs)} between images, of"
        f" {count(atlas.static_macs)}",
    )
    yield (
        "different paths",
        f"{atlas.num_paths:,}",
        f"{100 * atlas.num_paths / atlas.num_images:.3g} for every 100 images",
    )
    yield (
        "path entropy",
        f"{atlas.path_entropy_bits:.2f} bits",
        f"at most {most:.2f}, if each image had its own",
    )
    if atlas.accuracy is not None:
        yield "accuracy", percent(atlas.accuracy), "top 1, on these images"
