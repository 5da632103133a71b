"""What a network's paths cost: the table of its parts, and the paths of a set in numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dggraph.compiler.lowering import LoweredModule, stage_layout
from dggraph.errors import InputError
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.macs import MacsTable, StageMacs


@dataclass(frozen=True, slots=True, kw_only=True)
class MacsSummary:
    """Multiply-accumulates per instance over a set; `kept` is their share of the static network's and may exceed 1."""

    num_instances: int
    mean: float
    kept: float
    """Mean, as a fraction of the static network's MACs."""
    percentiles: dict[int, float]
    """5, 25, 50, 75 and 95: kept fractions."""


def tabulate_macs(graph: DynamicGraph, lowered: LoweredModule, scope: str, total_macs: int) -> MacsTable:
    """The cost of every part of `graph`: blocks as profiled, routers as counted, one MAC an element for each edge.

    Args:
        graph: what may connect.
        lowered: owns the routers.
        scope: `node` or `stage`.
        total_macs: MACs of the backbone, one instance.
    """
    stages: dict[str, StageMacs] = {}
    for name in graph.stages:
        nodes, owner = graph.nodes(name), lowered.get_submodule(f"dg_{name}")
        routers = [
            _router_macs(owner.get_submodule(f"router_{index}"), node.shape) if scope == "node" or index == 0 else 0
            for index, node in enumerate(nodes[:-1])
        ]
        blocks = [node.macs if node.kind == "block" else 0 for node in nodes]
        shapes = {node.name: node.shape for node in nodes}
        stages[name] = StageMacs(
            layout=stage_layout(graph, name),
            vertices=tuple(block + router for block, router in zip(blocks, [*routers, 0], strict=True)),
            edges=tuple(math.prod(shapes[edge.source]) for edge in graph.edges(name)),
        )
    routed = sum(node.macs for name in graph.stages for node in graph.nodes(name) if node.kind == "block")
    return MacsTable(fixed=total_macs - routed, static=total_macs, is_useful_only=scope == "stage", stages=stages)


def summarise_macs(macs: Iterable[Tensor], table: MacsTable) -> MacsSummary:
    """Mean and percentiles over the instances of a set.

    Args:
        macs: (B,) tensors, as `Recording.macs`.

    Raises:
        InputError: there are no instances.
    """
    parts = [part.to(torch.float64).flatten().cpu() for part in macs]
    all_macs = torch.cat(parts) if parts else torch.zeros(0)
    if not len(all_macs):
        raise InputError("there are no instances to summarise; record at least one image.")
    shares = (5, 25, 50, 75, 95)
    values = torch.quantile(all_macs / table.static, torch.tensor([share / 100 for share in shares], dtype=torch.float64))
    mean = float(all_macs.mean())
    return MacsSummary(
        num_instances=len(all_macs),
        mean=mean,
        kept=mean / table.static,
        percentiles=dict(zip(shares, values.tolist(), strict=True)),
    )


def _router_macs(router: nn.Module, shape: tuple[int, ...]) -> int:
    parameter = next(router.parameters(), torch.zeros(()))
    was_training = router.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        router.eval()(torch.zeros((1, *shape), dtype=parameter.dtype, device=parameter.device))
    router.train(was_training)
    return int(counter.get_total_flops()) // 2
