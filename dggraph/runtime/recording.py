"""Record what every instance did: its adjacency matrices, its path and its MACs. Outside the model, so training sees none of it.

Shape suffixes: B instances, E candidate edges of a stage, V vertices of a stage (v0, v1 .. vN, out).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dggraph.errors import InputError
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.ops.liveness import live_vertices
from dggraph.ops.macs import path_macs
from dggraph.runtime.execution import refuse_nan
from dggraph.runtime.modes import evaluating
from dggraph.runtime.network import DynamicNetwork, Gates
from dggraph.runtime.outputs import join_outputs


@dataclass(frozen=True, slots=True)
class Recording:
    """What `record` saw, in input order."""

    output: Any
    """The backbone's output for the whole batch."""
    adjacency: dict[str, Tensor]
    """Per stage (B, V, V): row = source, column = target, 0 where an edge is inactive."""
    paths: tuple[ActivatedPath, ...]
    """One per instance."""
    macs: Tensor
    """(B,) int64: multiply-accumulates of each instance's path, routers and aggregation included."""


def record(net: DynamicNetwork, x: Tensor, *, batch_size: int = 1) -> Recording:
    """Run `x` through `net` in eval mode without gradients and note every instance's path.

    Args:
        net: a converted network; its mode is restored.
        x: (B, C, H, W).
        batch_size: instances a forward pass; 1 by default, because a weight at the threshold may fall differently in another batch.

    Raises:
        InputError: `x` is no image batch, or `batch_size` is not positive.
        GateError: an edge weight is NaN; names stage, edge and instance.
    """
    if not net.graph.stages:
        raise InputError("this network has no stages, so there are no paths to record.")
    if x.ndim != 4 or batch_size < 1:
        raise InputError(f"record needs a batch (B, C, H, W) and a positive batch_size, got {tuple(x.shape)} and {batch_size}.")
    outputs: list[Any] = []
    parts: list[Gates] = []
    with evaluating(net):
        for chunk in torch.split(x, batch_size):
            output, gates = net(chunk, return_gates=True)
            outputs.append(output)
            parts.append(gates)
    stages = list(net.graph.stages)
    gates = parts[0]._replace(
        weights={stage: torch.cat([part.weights[stage] for part in parts]) for stage in stages},
        raw={stage: torch.cat([part.raw[stage] for part in parts]) for stage in stages},
    )
    paths = activated_paths(net.graph, gates)
    adjacency = {stage: adjacency_matrix(net.graph, stage, gates.weights[stage]) for stage in stages}
    macs = torch.tensor([path.macs for path in paths], dtype=torch.int64, device=x.device)
    return Recording(join_outputs(outputs), adjacency, paths, macs)


def activated_paths(graph: DynamicGraph, gates: Gates) -> tuple[ActivatedPath, ...]:
    """The path of every instance of a batch.

    Args:
        graph: whose gates they are.
        gates: of a forward pass in eval mode.

    Raises:
        GateError: an edge weight is NaN; names stage, edge and instance.
    """
    for stage, raw_BE in gates.raw.items():
        refuse_nan(graph, stage, raw_BE)
    macs = path_macs({stage: weights_BE != 0 for stage, weights_BE in gates.weights.items()}, gates.table).long().tolist()
    margins, lists = _margins(gates), {stage: weights_BE.tolist() for stage, weights_BE in gates.weights.items()}
    return tuple(
        ActivatedPath(
            weights={stage: tuple(weights[index]) for stage, weights in lists.items()},
            macs=macs[index],
            margin=margins[index],
        )
        for index in range(len(macs))
    )


def adjacency_matrix(graph: DynamicGraph, stage: str, weights_BE: Tensor) -> Tensor:
    """(B, E) edge weights as (B, V, V) matrices: row = source, column = target."""
    place = {node.name: index for index, node in enumerate(graph.nodes(stage))}
    rows = [place[edge.source] for edge in graph.edges(stage)]
    columns = [place[edge.target] for edge in graph.edges(stage)]
    adjacency_BVV = weights_BE.new_zeros((weights_BE.shape[0], len(place), len(place)))
    adjacency_BVV[:, rows, columns] = weights_BE
    return adjacency_BVV


def _margins(gates: Gates) -> list[float]:
    """Per instance the smallest |weight - threshold| over edges whose source is live; closed edges of dead sources cannot flip."""
    smallest: Tensor | None = None
    for stage, raw_BE in gates.raw.items():
        layout = gates.table.stages[stage].layout
        live_BE = live_vertices(gates.weights[stage] != 0, layout)[:, list(layout.sources)] > 0
        margin_B = (raw_BE - gates.thresholds[stage].to(raw_BE.dtype)).abs().masked_fill(~live_BE, torch.inf).amin(1)
        smallest = margin_B if smallest is None else torch.minimum(smallest, margin_B)
    return [] if smallest is None else smallest.tolist()
