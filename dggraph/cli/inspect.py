"""`dggraph inspect`: what a backbone becomes."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.layouts import (
    collapse_option,
    lay_out_network,
    page_options,
    refuse_scheme,
    say_collapsed,
)
from dggraph.cli.networks import open_network
from dggraph.cli.options import as_json, make_folder, model_options
from dggraph.cli.parameters import LocatedPath
from dggraph.cli.sections import SectionedCommand

if TYPE_CHECKING:
    from dggraph.network.network import DynamicNetwork
    from dggraph.network.report import ConversionReport
    from dggraph.views.colour_scheme import Scheme
    from dggraph.views.layout import Layout


@click.command(cls=SectionedCommand)
@model_options
@click.option("--text", is_flag=True, help="Print the graph node by node.")
@click.option(
    "--svg",
    type=LocatedPath(dir_okay=False),
    help="Draw the graph; other suffixes as in `paths --format`.",
)
@collapse_option
@page_options
@as_json
def command(
    text: bool,
    svg: Path | None,
    collapse: str | None,
    scheme: Any,
    width: int,
    as_json: bool,
    **model: Any,
) -> None:
    """Convert MODEL and show its stages, edges, MACs, and what stays static and why."""
    if svg is not None:
        from dggraph.views.drawing import format_of

        format_of(svg)
        refuse_scheme(svg, scheme)
        make_folder(svg.parent)
    net = open_network(**model)
    message = ""
    if svg is not None:
        layout = lay_out_network(net, collapse, width)
        draw_graph(net, svg, layout, title=str(model["model"]), scheme=scheme)
        from dggraph.views.escaping import visible

        collapsed = say_collapsed(net, layout, collapse)
        message = " ".join((visible(f"Picture: {svg}."), collapsed)).strip()
    if as_json:
        shares: dict[str, Any] = {
            "weights_origin": net.weights_origin,
            "covered_fraction": net.report.covered_fraction,
            "routed_fraction": net.report.routed_fraction,
        }
        click.echo(json.dumps(asdict(net.report) | shares | {"graph": str(net.graph)}))
    elif text:
        from dggraph.views.escaping import visible

        click.echo("\n".join(visible(line) for line in str(net.graph).split("\n")))
    else:
        show_report(net.report, net.weights_origin)
    if message and not as_json:
        click.echo(message)


def draw_graph(
    net: "DynamicNetwork", file: Path, layout: "Layout", *, title: str, scheme: "Scheme"
) -> None:
    """Draw the graph into `file`."""
    from dggraph.views.drawing import draw
    from dggraph.views.escaping import count
    from dggraph.views.picture import picture_graph

    facts = (
        (
            f"{net.report.covered_fraction:.1%} of {count(net.report.total_macs)} MACs are inside"
            " stages"
        ),
    )
    picture = picture_graph(net.graph, title=title, facts=facts, layout=layout)
    draw(replace(picture, scheme=scheme), file)


def show_report(report: "ConversionReport", weights_origin: str) -> None:
    """Print the report as tables, and where the weights come from."""
    from rich.console import Console
    from rich.table import Table

    from dggraph.views.escaping import count, for_terminal

    console = Console()
    table = Table(
        title=for_terminal(
            f"{report.name}: {report.num_blocks} routed blocks, {report.num_edges} candidate edges"
        ),
        title_justify="left",
    )
    for heading in ("stage", "depth", "routed", "edges", "residual", "shape", "MACs"):
        table.add_column(heading, justify="left" if heading in ("stage", "residual") else "right")
    for stage in report.stages:
        shape = "x".join(str(size) for size in stage.shape)
        cells = (
            stage.name,
            stage.depth,
            stage.num_blocks,
            stage.num_edges,
            stage.residual,
            shape,
            count(stage.macs),
        )
        table.add_row(*(for_terminal(str(cell)) for cell in cells))
    console.print(table)
    console.print(
        f"{report.covered_fraction:.1%} of {count(report.total_macs)} MACs are inside stages,"
        f" {report.routed_fraction:.1%} in routed blocks.",
        soft_wrap=True,
    )
    console.print(
        "Its outputs are bitwise identical to the backbone's."
        if report.max_difference == 0
        else f"It differs from the backbone by {report.max_difference:g} at most."
    )
    console.print(for_terminal(f"Weights: {weights_origin}."), soft_wrap=True)
    if report.static:
        rest = Table(title="static", title_justify="left")
        for heading in ("part", "MACs", "why"):
            rest.add_column(heading, justify="right" if heading == "MACs" else "left")
        for part in report.static[:12]:
            rest.add_row(
                for_terminal(part.module_path),
                count(part.macs),
                for_terminal(part.reason),
            )
        console.print(rest)
        if len(report.static) > 12:
            console.print(f"and {len(report.static) - 12} smaller parts; --json lists them all.")
    several = [stage for stage in report.stages if stage.granularity != "edge"]
    if several:
        each = several[0].granularity
        named = f"each of {each} groups of channels" if isinstance(each, int) else f"each {each}"
        single = [stage.name for stage in report.stages if stage.granularity == "edge"]
        others = f"; one in {', '.join(single)}, where they concatenate or pad" if single else ""
        console.print(for_terminal(f"Edges have a weight for {named}{others}."), soft_wrap=True)
    added = [stage.name for stage in report.stages if stage.aggregation == "additive"]
    if added:
        console.print(
            for_terminal(
                f"Nodes of {', '.join(added)} read the plain sum and an added, weighted one."
            ),
            soft_wrap=True,
        )
    kept = [f"{stage.name}: {stage.kept_because}" for stage in report.stages if stage.kept_because]
    if kept:
        console.print(
            for_terminal(f"Residuals stay inside the blocks of {'; '.join(kept)}."), soft_wrap=True
        )
    whole = [
        f"{stage.name}: {stage.dense_because}" for stage in report.stages if stage.dense_because
    ]
    if whole:
        console.print(
            for_terminal(f"Blocks always run on whole batches in {'; '.join(whole)}."),
            soft_wrap=True,
        )
    if report.checkpointed:
        names = ", ".join(name or "the backbone itself" for name in report.checkpointed)
        console.print(
            for_terminal(
                f"Gradient checkpointing did not come along on {names}: training needs more memory."
            ),
            soft_wrap=True,
        )
    if report.frozen:
        console.print(
            f"{len(report.frozen)} parameters are not read in eval mode, for example auxiliary"
            " heads; they require no gradients.",
            soft_wrap=True,
        )
    if report.eval_only:
        places = "; ".join(report.eval_only)
        console.print(
            for_terminal(
                f"What the backbone does otherwise in training did not come along: {places}."
            ),
            soft_wrap=True,
        )
    if report.hooks:
        names = ", ".join(name or "the backbone itself" for name in report.hooks)
        console.print(for_terminal(f"Hooks did not come along on {names}."), soft_wrap=True)
    if report.detached:
        console.print(
            for_terminal(
                "Left by a former forward, copied without their history:"
                f" {', '.join(report.detached)}."
            )
        )
    if report.branches:
        console.print(for_terminal(f"{report.branches}."), soft_wrap=True)
    for opaque in report.opaque:
        console.print(for_terminal(f"Kept as one call: {opaque}."), soft_wrap=True)
    if report.assumptions:
        others = f" and {len(report.assumptions) - 3} more" if len(report.assumptions) > 3 else ""
        places = "; ".join(assumption.place for assumption in report.assumptions[:3])
        console.print(
            for_terminal(
                f"Branches taken for images of this kind: {places}{others}; --json lists them all."
            ),
            soft_wrap=True,
        )
