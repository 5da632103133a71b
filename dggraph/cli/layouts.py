"""How much of a network the drawing commands show: the option, and the layout it gives."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dggraph.cli.parameters import WholeNumber

if TYPE_CHECKING:
    from dggraph.network.network import DynamicNetwork
    from dggraph.views.layout import Layout


def collapse_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """--collapse LEVEL."""
    return click.option(
        "--collapse",
        type=click.Choice(["stage", "block", "op"]),
        help=(
            "Draw one card a stage, every block, or every block's ops; by default blocks, or stages"
            " above 150 of them."
        ),
    )(function)


def page_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--width PIXELS and --scheme, of a picture."""
    scheme = click.option(
        "--scheme",
        type=click.Choice(["auto", "light", "dark"]),
        default="auto",
        show_default=True,
        help="Colours of an SVG: those of the page around it, or fixed. Other formats are light.",
    )
    width = click.option(
        "--width",
        type=WholeNumber(min=320),
        default=820,
        show_default=True,
        metavar="PIXELS",
        help="Page that the picture fits; a phone has about 390.",
    )
    return scheme(width(function))


def lay_out_network(net: "DynamicNetwork", collapse: Any, width: float = 820) -> "Layout":
    """Places for the pictures of `net`."""
    from dggraph.views.layout import lay_out

    ops = block_ops(net) if collapse == "op" else None
    return lay_out(net.graph, level=collapse, ops=ops, page=float(width))


def refuse_scheme(file: Path, scheme: str) -> None:
    """Refuse a fixed scheme for a file that is not an SVG.

    Raises:
        click.UsageError: the file would not show it.
    """
    if scheme == "dark" and file.suffix.lower() != ".svg":
        raise click.UsageError(
            f"--scheme dark is for SVG, and {file.name} is not: leave it out, or write an .svg."
        )


def say_collapsed(net: "DynamicNetwork", layout: "Layout", collapse: str | None) -> str:
    """A line for a picture that was collapsed without being asked for; else empty."""
    if collapse is not None or layout.level == "block":
        return ""
    return (
        f"Drawn by {layout.level}: {net.graph.nx.number_of_nodes()} nodes are many. --collapse"
        " block draws every one."
    )


def block_ops(net: "DynamicNetwork") -> dict[str, tuple[str, ...]]:
    """Return, per node, the operations of its block in the order in which they run.

    Operations are named by module class, function or method.
    """
    fx_nodes = {fx_node.name: fx_node for fx_node in net.lowered.graph.nodes}
    return {
        block.node: tuple(
            label for name in block.fx_nodes if (label := _op_label(net, fx_nodes[name]))
        )
        for stage in net.plan
        for block in stage.blocks
    }


def _op_label(net: "DynamicNetwork", fx_node: Any) -> str:
    """Empty for what only reads shapes and parameters."""
    if fx_node.op == "call_module":
        return type(net.lowered.get_submodule(fx_node.target)).__name__
    if fx_node.op == "call_method":
        return "" if fx_node.target in ("size", "dim") else str(fx_node.target)
    if fx_node.op == "call_function" and fx_node.target not in (getattr, operator.getitem):
        return str(getattr(fx_node.target, "__name__", fx_node.target))
    return ""
