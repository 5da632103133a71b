"""`dggraph inspect`: what a backbone becomes."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.options import as_json, model_options, open_network

if TYPE_CHECKING:
    from dggraph.runtime.report import ConversionReport


@click.command()
@model_options
@click.option("--text", is_flag=True, help="Print the graph node by node.")
@as_json
def command(text: bool, as_json: bool, **model: Any) -> None:
    """Convert MODEL and show its stages, edges, MACs, and what stays static and why."""
    net = open_network(**model)
    if as_json:
        shares = {"covered_fraction": net.report.covered_fraction, "routed_fraction": net.report.routed_fraction}
        click.echo(json.dumps(asdict(net.report) | shares | {"graph": str(net.graph)}))
    elif text:
        click.echo(str(net.graph))
    else:
        show_report(net.report)


def show_report(report: "ConversionReport") -> None:
    """Print the report as tables."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(
        title=escape(f"{report.name}: {report.num_blocks} routed blocks, {report.num_edges} candidate edges"), title_justify="left"
    )
    for heading in ("stage", "depth", "routed", "edges", "residual", "shape", "MACs"):
        table.add_column(heading, justify="left" if heading in ("stage", "residual") else "right")
    for stage in report.stages:
        shape = "x".join(str(size) for size in stage.shape)
        cells = (stage.name, stage.depth, stage.num_blocks, stage.num_edges, stage.residual, shape, f"{stage.macs / 1e6:,.1f} M")
        table.add_row(*(escape(str(cell)) for cell in cells))
    console.print(table)
    console.print(
        f"{report.covered_fraction:.1%} of {report.total_macs / 1e6:,.1f} M MACs are inside stages, {report.routed_fraction:.1%} in "
        f"routed blocks; max |backbone - lowered| = {report.max_difference:g} at batch 3."
    )
    if report.static:
        rest = Table(title="static", title_justify="left")
        for heading in ("part", "MACs", "why"):
            rest.add_column(heading, justify="right" if heading == "MACs" else "left")
        for part in report.static[:12]:
            rest.add_row(escape(part.module_path), f"{part.macs / 1e6:,.1f} M", escape(part.reason))
        console.print(rest)
        if len(report.static) > 12:
            console.print(f"and {len(report.static) - 12} smaller parts; --json lists them all.")
    kept = [f"{stage.name}: {stage.kept_because}" for stage in report.stages if stage.kept_because]
    if kept:
        console.print(escape(f"Residuals stay inside the blocks of {'; '.join(kept)}."), soft_wrap=True)
    if report.frozen:
        console.print(
            f"{len(report.frozen)} parameters are not read in eval mode, for example auxiliary heads; they require no gradients.",
            soft_wrap=True,
        )
    if report.hooks:
        names = ", ".join(name or "the backbone itself" for name in report.hooks)
        console.print(escape(f"Hooks did not come along on {names}."), soft_wrap=True)
    if report.opaque:
        console.print(escape(f"Kept as one call, could not be traced: {', '.join(report.opaque)}."))
