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
    modes = {module: module.training for module in net.modules()}
    outputs: list[Any] = []
    parts: list[Gates] = []
    net.eval()
    try:
        with torch.no_grad():
            for chunk in torch.split(x, batch_size):
                output, gates = net(chunk, return_gates=True)
                outputs.append(output)
                parts.append(gates)
    finally:
        for module, mode in modes.items():
            module.training = mode
    stages = list(net.graph.stages)
    weights = {stage: torch.cat([part.weights[stage] for part in parts]) for stage in stages}
    raw = {stage: torch.cat([part.raw[stage] for part in parts]) for stage in stages}
    for stage in stages:
        refuse_nan(net.graph, stage, raw[stage])
    macs = path_macs({stage: weights[stage] != 0 for stage in stages}, net.macs_table).long()
    margins = _margins(net, raw, weights)
    lists = {stage: weights[stage].tolist() for stage in stages}
    paths = tuple(
        ActivatedPath(
            weights={stage: tuple(lists[stage][index]) for stage in stages},
            macs=int(macs[index]),
            margin=margins[index],
        )
        for index in range(x.shape[0])
    )
    adjacency = {stage: adjacency_matrix(net.graph, stage, weights[stage]) for stage in stages}
    return Recording(join_outputs(outputs), adjacency, paths, macs)


def adjacency_matrix(graph: DynamicGraph, stage: str, weights_BE: Tensor) -> Tensor:
    """(B, E) edge weights as (B, V, V) matrices: row = source, column = target."""
    place = {node.name: index for index, node in enumerate(graph.nodes(stage))}
    rows = [place[edge.source] for edge in graph.edges(stage)]
    columns = [place[edge.target] for edge in graph.edges(stage)]
    adjacency_BVV = weights_BE.new_zeros((weights_BE.shape[0], len(place), len(place)))
    adjacency_BVV[:, rows, columns] = weights_BE
    return adjacency_BVV


def _margins(net: DynamicNetwork, raw: dict[str, Tensor], weights: dict[str, Tensor]) -> list[float]:
    """Per instance the smallest |weight - threshold| over edges whose source is live; closed edges of dead sources cannot flip."""
    smallest: Tensor | None = None
    for stage, raw_BE in raw.items():
        layout = net.macs_table.stages[stage].layout
        threshold = net.lowered.get_submodule(f"dg_{stage}").get_buffer("threshold").to(raw_BE.dtype)
        live_BE = live_vertices(weights[stage] != 0, layout)[:, list(layout.sources)] > 0
        margin_B = (raw_BE - threshold).abs().masked_fill(~live_BE, torch.inf).amin(1)
        smallest = margin_B if smallest is None else torch.minimum(smallest, margin_B)
    return [] if smallest is None else smallest.tolist()
