"""The report of an atlas: one HTML file that needs no network, no script to be read, and holds no
name unescaped.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from math import log2

from PIL import Image

from dggraph.graph.atlas import Atlas
from dggraph.graph.ir import DynamicGraph
from dggraph.views.atlas_json import write_numbers
from dggraph.views.escaping import count, plural
from dggraph.views.html_page import asset, write_page
from dggraph.views.layout import lay_out
from dggraph.views.report_parts import Context, name_of, percent, static_part
from dggraph.views.report_sections import (
    write_classes,
    write_costs,
    write_edges,
    write_health,
    write_images,
    write_paths,
)
from dggraph.views.stage_diagram import define_curves


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report in both its forms. Make one with `make_report`; notebooks show it.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> collected = dggraph.evaluation.collect_atlas(net, dggraph.evaluation.open_image_set("."))
        >>> report = dggraph.evaluation.make_report(net.graph, collected.atlas, collected.thumbnails)
        >>> report.html.lower().startswith("<!doctype html>")
        True
    """

    summary: str
    """One line."""
    html: str
    """A whole document."""
    json: str
    """The same numbers, for programs."""

    def __str__(self) -> str:
        return self.summary

    def __repr__(self) -> str:
        return f"<Report: {self.summary}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the document in a frame of its own, where it can touch nothing
        else. Never raises.
        """
        with suppress(Exception):
            frame = 'sandbox="allow-scripts" width="100%" height="720" title="Atlas of paths"'
            return f'<iframe srcdoc="{escape(self.html)}" {frame}></iframe>'
        return "<pre>This report cannot be shown.</pre>"


def make_report(
    graph: DynamicGraph, atlas: Atlas, thumbnails: Mapping[int, Image.Image], *, score: float = 0.5
) -> Report:
    """Write the report of `atlas`.

    Args:
        graph: what may connect.
        atlas: what did.
        thumbnails: small images by their place in the set; where one is missing, the report says
            so.
        score: outline the objects of this score or more, where a detector ran.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> collected = dggraph.evaluation.collect_atlas(net, dggraph.evaluation.open_image_set("."))
        >>> "1 image" in str(dggraph.evaluation.make_report(net.graph, collected.atlas, collected.thumbnails))
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
    sections = (
        _heading(context),
        write_health(context),
        write_costs(context),
        write_edges(context),
        write_classes(context) if atlas.classes else "",
        write_paths(context),
        write_images(context),
    )
    body = f"{define_curves(context.layout)}<main>{''.join(sections)}</main>"
    html = write_page(f"Atlas: {atlas.network} on {atlas.images}", body, asset("report.js"))
    return Report(summary=summary, html=html, json=write_numbers(graph, atlas, score))


def _heading(context: Context) -> str:
    atlas = context.atlas
    most = log2(atlas.num_images)
    tiles = [
        (
            "images",
            f"{atlas.num_images:,}",
            f"{atlas.num_skipped:,} skipped" if atlas.num_skipped else "all could be read",
        ),
        (
            "MACs kept",
            percent(atlas.mean_macs / atlas.static_macs),
            (
                f"± {percent(atlas.std_macs / atlas.static_macs)} between images, of"
                f" {count(atlas.static_macs)}"
            ),
        ),
        (
            "different paths",
            f"{atlas.num_paths:,}",
            f"{100 * atlas.num_paths / atlas.num_images:.3g} for every 100 images",
        ),
        (
            "path entropy",
            f"{atlas.path_entropy_bits:.2f} bits",
            f"at most {most:.2f}, if each image had its own",
        ),
    ]
    if atlas.accuracy is not None:
        tiles.append(("accuracy", percent(atlas.accuracy), "top 1, on these images"))
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in tiles
    )
    notes = ""
    if atlas.num_ignored:
        notes += (
            f'<p class="note">{plural(atlas.num_ignored, "file")} left out, hidden or without an'
            " image's suffix.</p>"
        )
    if atlas.num_skipped:
        rows = "".join(
            f"<li>{name_of(name)}: {name_of(reason)}</li>" for name, reason in atlas.skipped
        )
        shown = (
            f", the first {len(atlas.skipped)}" if len(atlas.skipped) < atlas.num_skipped else ""
        )
        notes += (
            f"<details><summary>{plural(atlas.num_skipped, 'image')} could not be"
            f" read{shown}</summary><ul>{rows}</ul></details>"
        )
    places = [
        ("health", "Gates"),
        ("costs", "MACs"),
        ("edges", "Edges"),
        ("classes", "Classes"),
        ("paths", "Paths"),
        ("images", "Images"),
    ]
    links = "".join(
        f'<a href="#{place}">{name}</a>'
        for place, name in places
        if place != "classes" or atlas.classes
    )
    return (
        f'<header><p class="eyebrow">dggraph · atlas of paths</p><h1>{name_of(atlas.network)} on'
        f' {name_of(atlas.images)}</h1><dl class="tiles">{cells}</dl>{notes}<nav'
        f' aria-label="Sections">{links}</nav></header>'
    )
