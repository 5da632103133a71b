"""Multiply-accumulates of an instance's path, as a function of which edges are open: one function
for the meter and for the budget.

With edges that are open (1) or closed (0) it counts exactly what the sparse executor computes. With
probabilities it is the expected count, edges taken as independent, and has a gradient:
`ops/liveness` then gives the probability that a node is reached.

The expected count takes the sources of a node as independent of each other. That is exact where no
two of them depend on the same uncertain
edge: in chains and trees, and under the complete wiring for stages of up to two blocks. Elsewhere
paths share edges, being reached is positively correlated, and the count is an upper bound (Harris'
inequality; `live * leads` adds no error, since they share no edge).

Shape suffixes: B instances, E edges of a stage, V vertices of a stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dggraph.ops.liveness import Topology, leads_to_out, live_vertices

TEMPERATURE = 0.2
"""Width of the step from closed to open, in units of edge weight. An anchored net starts 0.5 away
from its threshold on both sides; there 0.2 gives a gradient of 0.35, the peak being 1.25 at the
threshold; 0.05 would give 0.001, and 1 would not know open from closed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMacs:
    """What the parts of one stage cost, in multiply-accumulates of one instance."""

    topology: Topology
    vertices: tuple[int, ...]
    """Per vertex: its block and, with `node` routers, its router; 0 for `out`. v0 counts its router
    alone.
    """
    edges: tuple[int, ...]
    """Per edge: one for every element of the feature it hands on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MacsTable:
    """What a network's paths are made of."""

    fixed: int
    """Outside the routed blocks: what every instance computes."""
    static: int
    """The backbone, for `kept` fractions."""
    is_useful_only: bool
    """True with `stage` routers: a block that does not lead on to `out` is not computed."""
    stages: Mapping[str, StageMacs]


def path_macs(opens: Mapping[str, Tensor], table: MacsTable) -> Tensor:
    """MACs of each instance, (B,) float64: exact for 0 and 1, expected (see the top of this file)
    for what lies between.

    Args:
        opens: per stage (B, E), how open each edge is. Edges that leave a dead node may say
            anything.
        table: what the parts cost.
    """
    total_B: Tensor | None = None
    for name, stage in table.stages.items():
        open_BE = opens[name].to(torch.float64)
        runs_BV = live_BV = live_vertices(open_BE, stage.topology)
        used_BE = open_BE * live_BV[:, list(stage.topology.sources)]
        if table.is_useful_only:
            leads_BV = leads_to_out(open_BE, stage.topology)
            # v0's router runs whether or not anything but v0 leads on.
            runs_BV = torch.cat([live_BV[:, :1], live_BV[:, 1:] * leads_BV[:, 1:]], dim=1)
            used_BE = used_BE * leads_BV[:, list(stage.topology.targets)]
        vertices_V = open_BE.new_tensor(stage.vertices)
        edges_E = open_BE.new_tensor(stage.edges)
        macs_B = runs_BV @ vertices_V + used_BE @ edges_E
        total_B = macs_B if total_B is None else total_B + macs_B
    if total_B is None:
        raise ValueError("a network without stages has no paths")
    return total_B + table.fixed


def path_share(opens: Mapping[str, Tensor], table: MacsTable) -> float:
    """MACs of one path as a fraction of the static network's.

    Args:
        opens: per stage (E,), 1 for its open edges and 0 for the others.
        table: what the parts cost.
    """
    macs = path_macs({stage: open_E[None] for stage, open_E in opens.items()}, table)
    return float(macs) / table.static


def open_probabilities(
    weights: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
    thresholds: Mapping[str, Tensor],
    table: MacsTable,
) -> dict[str, Tensor]:
    """How probably each edge would be open were its weight a little different: sigmoid((raw -
    threshold) / TEMPERATURE).

    Two kinds of edges are not asked about their weight. With `node` routers an edge that leaves a
    dead node is closed, without gradient: its router never saw a feature of that node. An edge that
    the output rule opened is open, and its weight still gets the gradient.

    Args:
        weights: per stage (B, E), as settled: 0 where an edge is inactive.
        raw: per stage (B, E), before the threshold and liveness; gets the gradient. NaN propagates.
        thresholds: per stage, 0-d.
        table: layouts, and where routers stand.

    Returns:
        Per stage (B, E) float64, for `path_macs`.
    """
    probabilities: dict[str, Tensor] = {}
    for name, raw_BE in raw.items():
        topology = table.stages[name].topology
        raw_BE, threshold, open_BE = (
            raw_BE.to(torch.float64),
            thresholds[name].to(torch.float64),
            weights[name].detach() != 0,
        )
        if not table.is_useful_only:
            live_BE = live_vertices(open_BE, topology)[:, list(topology.sources)] > 0
            raw_BE = torch.where(live_BE, raw_BE, -torch.inf)
        chance_BE = torch.sigmoid((raw_BE - threshold) / TEMPERATURE)
        by_rule_BE = open_BE & (raw_BE <= threshold)
        probabilities[name] = torch.where(
            by_rule_BE, chance_BE + (1 - chance_BE).detach(), chance_BE
        )
    return probabilities
