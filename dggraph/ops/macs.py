"""MACs of an instance's path as a function of its open edges, for the meter and the budget.

With edges that are open (1) or closed (0), this counts exactly what the sparse executor computes.
With probabilities it is the expected count, edges taken as independent, and is differentiable:
`ops/liveness` then gives the probability that a node is reached.

The expected count takes the sources of a node as independent of each other. That is exact where no
two of them depend on the same uncertain edge: in chains and trees, and under the complete wiring
for stages of up to two blocks. Elsewhere paths share edges, so that reaching two nodes is
positively correlated, and the count is an upper bound (Harris' inequality; `live * leads` adds no
error, since they share no edge).

Shape suffixes: B instances, E edges of a stage, V vertices of a stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dggraph.ops.device_copies import constant
from dggraph.ops.liveness import Topology, leads_to_out, live_vertices, of_vertices

TEMPERATURE = 0.2
"""Width of the step from closed to open, in units of edge weight.

An anchored network starts 0.5 away from its threshold on both sides. There 0.2 gives a gradient of
0.35, against a peak of 1.25 at the threshold; 0.05 would give 0.001, and 1 would hardly separate
open from closed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMacs:
    """The MACs of one instance in each part of one stage."""

    topology: Topology
    vertices: tuple[int, ...]
    """For each vertex, its block and, with `node` routers, its router.

    `out` counts 0, and v0 only its router.
    """
    edges: tuple[int, ...]
    """For each edge, one MAC per element of the feature that it carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MacsTable:
    """The MACs of all parts of a network."""

    fixed: int
    """MACs outside the routed blocks, which every instance computes."""
    static: int
    """MACs of the backbone, the denominator of `kept` fractions."""
    is_useful_only: bool
    """Whether blocks that do not lead on to `out` are skipped, as with `stage` routers."""
    stages: Mapping[str, StageMacs]


def path_macs(opens: Mapping[str, Tensor], table: MacsTable) -> Tensor:
    """Return the MACs of each instance, (B,) float64.

    The count is exact for 0 and 1, and expected (see the module) for values between them.

    Args:
        opens: per stage (B, E), how open each edge is. Values of edges that leave a dead node are
            ignored.
        table: the MACs of each part.

    Raises:
        ValueError: the table has no stage.
    """
    total_B: Tensor | None = None
    for name, stage in table.stages.items():
        open_BE = opens[name].to(torch.float64)
        runs_BV = live_BV = live_vertices(open_BE, stage.topology)
        used_BE = open_BE * of_vertices(live_BV, stage.topology.sources)
        if table.is_useful_only:
            leads_BV = leads_to_out(open_BE, stage.topology)
            # v0's router always runs, even if v0 is the only live node.
            runs_BV = torch.cat([live_BV[:, :1], live_BV[:, 1:] * leads_BV[:, 1:]], dim=1)
            used_BE = used_BE * of_vertices(leads_BV, stage.topology.targets)
        vertices_V = constant(stage.vertices, open_BE)
        edges_E = constant(stage.edges, open_BE)
        macs_B = runs_BV @ vertices_V + used_BE @ edges_E
        total_B = macs_B if total_B is None else total_B + macs_B
    if total_B is None:
        raise ValueError("`table` has no stages, so there is no path whose MACs could be counted")
    return total_B + table.fixed


def path_share(opens: Mapping[str, Tensor], table: MacsTable) -> float:
    """Return the MACs ratio of one path: its MACs over the static network's.

    Args:
        opens: per stage (E,), 1 for its open edges and 0 for the others.
        table: the MACs of each part.
    """
    macs = path_macs({stage: open_E[None] for stage, open_E in opens.items()}, table)
    return float(macs) / table.static


def open_probabilities(
    weights: Mapping[str, Tensor],
    raw: Mapping[str, Tensor],
    thresholds: Mapping[str, Tensor],
    table: MacsTable,
) -> dict[str, Tensor]:
    """Return how likely each edge is to be open: sigmoid((raw - threshold) / TEMPERATURE).

    Two kinds of edges do not follow their weight. With `node` routers, an edge that leaves a dead
    node is closed and gets no gradient, since its router never saw a feature of that node. An edge
    opened by the output rule is open, and its weight still gets the gradient.

    Args:
        weights: per stage (B, E), as settled: 0 where an edge is inactive.
        raw: per stage (B, E), before the threshold and liveness; receives the gradient. NaN
            propagates.
        thresholds: per stage, 0-d.
        table: the stages' topologies and the kind of router.

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
            live_BE = of_vertices(live_vertices(open_BE, topology), topology.sources) > 0
            raw_BE = torch.where(live_BE, raw_BE, -torch.inf)
        chance_BE = torch.sigmoid((raw_BE - threshold) / TEMPERATURE)
        by_rule_BE = open_BE & (raw_BE <= threshold)
        probabilities[name] = torch.where(
            by_rule_BE, chance_BE + (1 - chance_BE).detach(), chance_BE
        )
    return probabilities
