"""A few lines of text on what a network routes, and what its routing does on given images."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dggraph.compiler.lowered import routing_of
from dggraph.views.escaping import count, plural

if TYPE_CHECKING:
    from dggraph.network.network import DynamicNetwork


def routing_summary(net: "DynamicNetwork", x: Tensor | None) -> str:
    """Return what is routed, where most of the work is, and how many parameters routers have.

    With images (B, C, H, W), also return the share of open edges and the MACs ratio of their paths.
    """
    report = net.report
    edges = [edge for stage in net.graph.stages for edge in net.graph.edges(stage)]
    routings = [routing_of(net.lowered, stage) for stage in net.graph.stages]
    in_routers = sum(p.numel() for routing in routings for p in routing.parameters())
    parameters = sum(p.numel() for p in net.parameters())
    lines = [
        f"{report.name}: {plural(len(report.stages), 'stage')},"
        f" {plural(report.num_blocks, 'routed block')}, {plural(len(edges), 'candidate edge')},"
        f" {sum(edge.is_static for edge in edges)} of them the backbone's own",
        f"MACs: {count(report.total_macs)}, {report.routed_fraction:.1%} in routed blocks",
        f"parameters: {parameters:,}, of which routers {in_routers / parameters:.2%};"
        f" weights: {net.weights_origin}",
    ]
    if report.stages:
        most = max(report.stages, key=lambda stage: stage.routed_macs)
        share = most.routed_macs / report.total_macs
        lines[1] += f"; most of them in {most.name}: {share:.1%}"
    if x is not None and report.stages:
        with torch.no_grad():
            _, gates = net(x, return_gates=True)
        ratio_B = gates.macs() / gates.table.static
        is_open = torch.cat([open_BE.flatten() for open_BE in gates.open.values()])
        lines.append(
            f"{plural(len(ratio_B), 'image')}: {float(is_open.double().mean()):.1%} of the edges"
            f" open, MACs ratio {float(ratio_B.mean()):.3f}, from {float(ratio_B.min()):.3f} to"
            f" {float(ratio_B.max()):.3f}; executor {net.last_run}"
        )
    return "\n".join(lines)
