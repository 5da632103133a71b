"""What a stage with one router runs for a pattern of open edges, worked out once and kept.

Which edges are open follows from one comparison with the threshold. That pattern is the key of a
`PatternPlan`: which nodes run, what each sums, which sum goes on from the one before, and which
features are no longer needed afterwards. Weights, threshold and temperature are read at every pass.

Where all images of a batch share a pattern, one plan serves the batch; a batch of one always does.

Shape suffixes: B instances, E edges.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dggraph.ops.liveness import Topology, leads_to_out, live_vertices, settle
from dggraph.ops.rows import Weights
from dggraph.ops.running_sum import Effects, RunningSum, Weight, continued

MAX_BYTES = 1 << 22
"""The most memory for the plans of one stage."""


@dataclass(frozen=True, slots=True)
class Sum:
    """One node: what it sums before its block runs."""

    vertex: int
    terms: tuple[tuple[int, int], ...]
    """(edge, source), in order."""
    same: tuple[tuple[int, int], ...]
    """Pairs of edges, empty where there are none. If both edges of each pair have equal weights,
    this sum is the one before plus its last term.
    """
    dead: tuple[int, ...]
    """Sources that nothing reads afterwards."""


@dataclass(frozen=True, slots=True)
class PatternPlan:
    """What to run for one pattern. The last sum is the stage's output."""

    sums: tuple[Sum, ...]
    is_open_E: Weights
    forced: int | None
    """The edge into `out` that opens at weight 1 because nothing else reaches it."""


class StagePlans:
    """The plans of one stage, by pattern; the least recently used go first."""

    def __init__(self, topology: Topology) -> None:
        self.topology, self.lock = topology, threading.Lock()
        self.plans: OrderedDict[bytes, PatternPlan] = OrderedDict()
        num_edges, num_vertices = len(topology.sources), topology.num_vertices
        self.capacity = max(16, MAX_BYTES // (200 * num_vertices + 150 * num_edges))

    def find(self, raw_BE: Weights, threshold: Weights) -> PatternPlan | None:
        """The plan for weights that a gate gave; None where images have different patterns."""
        closed_BE = raw_BE <= threshold
        if not len(closed_BE) or not (closed_BE == closed_BE[:1]).all():
            return None
        key = closed_BE[0].tobytes()
        with self.lock:
            plan = self.plans.get(key)
            if plan is not None:
                self.plans.move_to_end(key)
                return plan
        is_open_BE = settle(raw_BE, self.topology, threshold, False) != 0
        is_reached = is_open_BE[0, self.topology.incoming(self.topology.num_vertices - 1)].any()
        if not is_reached or not (is_open_BE == is_open_BE[:1]).all():
            return None
        plan = plan_pattern(is_open_BE[0], closed_BE[0], self.topology)
        if plan.forced is None:  # else the edge that opens depends on the weights
            with self.lock:
                self.plans[key] = plan
                if len(self.plans) > self.capacity:
                    self.plans.popitem(last=False)
        return plan


def plan_pattern(is_open_E: Weights, closed_E: Weights, topology: Topology) -> PatternPlan:
    """Work out one plan.

    Args:
        is_open_E: which edges are open after dead sources and the rule for `out`.
        closed_E: which were at or below the threshold.
        topology: the stage's edges.
    """
    runs_V = (
        live_vertices(is_open_E[None], topology)[0] & leads_to_out(is_open_E[None], topology)[0]
    )
    runs_V[-1] = True
    terms = {
        int(vertex): [
            (edge, topology.sources[edge])
            for edge in range(*topology.incoming(int(vertex)).indices(len(is_open_E)))
            if is_open_E[edge]
        ]
        for vertex in np.flatnonzero(runs_V)
        if vertex
    }
    last_reader = {source: vertex for vertex, own in terms.items() for _, source in own}
    sums: list[Sum] = []
    before: list[tuple[int, int]] = []
    for vertex, own in terms.items():
        dead = tuple(source for _, source in own if source and last_reader[source] == vertex)
        sums.append(Sum(vertex, tuple(own), continued(own, before), dead))
        before = own
    forced = np.flatnonzero(is_open_E & closed_E)
    return PatternPlan(tuple(sums), is_open_E, int(forced[0]) if len(forced) else None)


def weights_for(plan: PatternPlan, raw_BE: Weights, like: Tensor) -> list[Weight]:
    """Return the weight of each edge: a float if all images share it, else (B, 1, ..., 1)."""
    if len(raw_BE) == 1:
        weights: list[Weight] = raw_BE[0].tolist()
    else:
        is_shared_E = (raw_BE == raw_BE[:1]).all(0)
        shape = (-1, *[1] * (like.ndim - 1))
        weights = [
            float(raw_BE[0, edge])
            if is_shared_E[edge]
            else torch.as_tensor(raw_BE[:, edge], dtype=like.dtype, device=like.device).reshape(
                shape
            )
            for edge in range(raw_BE.shape[1])
        ]
    if plan.forced is not None:
        weights[plan.forced] = 1.0
    return weights


def run_plan(
    plan: PatternPlan,
    entry: Tensor,
    weights: Sequence[Weight],
    run_block: Callable[[int, Tensor], Tensor],
    effects: Sequence[Effects],
) -> Tensor:
    """Run a stage on `entry`.

    Args:
        plan: for the pattern of all images.
        entry: (B, ...), features of v0.
        weights: see `weights_for`.
        run_block: takes a vertex and its input.
        effects: per vertex from 1.

    Returns:
        The stage's output, (B, ...).
    """
    features: list[Any] = [entry] + [None] * len(effects)
    running = RunningSum()
    for one in plan.sums[:-1]:
        effect = effects[one.vertex - 1]
        total = running.advance(one.terms, one.same, features, weights, effect)
        for source in one.dead:
            features[source] = None
        output = features[one.vertex] = run_block(one.vertex, total)
        running.after_block(output, effect)
    last = plan.sums[-1]
    return running.advance(last.terms, last.same, features, weights, effects[-1])
