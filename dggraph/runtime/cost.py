"""What an instance's path costs, in multiply-accumulates.

Shape suffixes: B instances, E candidate edges of a stage.
"""

import math

import torch
from torch import Tensor

from dggraph.errors import InputError
from dggraph.ops.routing import ROUTERS
from dggraph.runtime.network import DynamicNetwork


def path_macs(net: DynamicNetwork, weights: dict[str, Tensor]) -> Tensor:
    """MACs of each instance, (B,) int64: what an executor that skips dead nodes has to compute.

    The fixed part of the backbone, every live block, the routers, and one MAC an element for each active edge. With `stage` routers
    a block must also reach `out` to be computed.
    """
    graph = net.graph
    routed = sum(node.macs for stage in graph.stages for node in graph.nodes(stage) if node.kind == "block")
    scope = ROUTERS[net.recipe.router][0]
    total_B: Tensor | None = None
    for stage, weights_BE in weights.items():
        nodes, edges = graph.nodes(stage), graph.edges(stage)
        channel = 0 if graph.stages[stage].channel_axis == 1 else -1
        active_BE = weights_BE != 0
        runs = {nodes[0].name: torch.ones_like(active_BE[:, 0])}
        for node in nodes[1:]:
            runs[node.name] = torch.stack([active_BE[:, i] for i, e in enumerate(edges) if e.target == node.name]).any(0)
        if scope == "stage":
            for node in reversed(nodes[1:-1]):
                onward = [active_BE[:, i] & runs[e.target] for i, e in enumerate(edges) if e.source == node.name]
                runs[node.name] = runs[node.name] & torch.stack(onward).any(0)
        macs_B = torch.zeros_like(active_BE[:, 0], dtype=torch.int64)
        for index, node in enumerate(nodes[:-1]):
            outgoing = len(graph.outgoing(node.name))
            router = node.shape[channel] * (outgoing if scope == "node" else len(edges) if index == 0 else 0)
            macs_B += runs[node.name] * (node.macs * (node.kind == "block") + router)
        for i, edge in enumerate(edges):
            source = next(node for node in nodes if node.name == edge.source)
            macs_B += (active_BE[:, i] & runs[edge.target]) * math.prod(source.shape)
        total_B = macs_B if total_B is None else total_B + macs_B
    if total_B is None:
        raise InputError("this network has no stages, so there are no paths to record.")
    return total_B + net.report.total_macs - routed
