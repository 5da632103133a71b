"""What a stage with one router runs for a pattern of open edges, worked out once and kept.

Which edges are open follows from one comparison with the threshold. That pattern is the key of a
`StagePlan`: which nodes run, what each sums, which sum goes on from the one before, and which
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

MAX_BYTES = 1 << 22
"""The most memory for the plans of one stage."""
Weight = Any
"""A float, or (B, 1, ...) where images differ."""


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
        goes_on = before and [s for _, s in own[:-1]] == [s for _, s in before]
        sums.append(
            Sum(
                vertex,
                tuple(own),
                tuple((edge, other) for (edge, _), (other, _) in zip(own, before, strict=False))
                if goes_on
                else (),
                tuple(source for _, source in own if source and last_reader[source] == vertex),
            )
        )
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


@dataclass(frozen=True, slots=True)
class Effects:
    """What may happen to the input of a vertex."""

    is_written: bool
    """Its block writes into it; for `out`, what follows the stage."""
    is_kept: bool
    """Its block may hold on to it."""


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
    total, is_own = None, False
    for one in plan.sums:
        effect = effects[one.vertex - 1]
        if total is not None and one.same and are_equal(weights, one.same):
            edge, source = one.terms[-1]
            total = add(total, features[source], weights[edge], in_place=is_own)
            is_own = True
        else:
            total, is_own = sum_terms(one.terms, features, weights, is_written=effect.is_written)
        for source in one.dead:
            features[source] = None
        if one is plan.sums[-1]:
            break
        output = features[one.vertex] = run_block(one.vertex, total)
        if effect.is_written:
            total = None
        elif is_own and (effect.is_kept or share_memory(output, total)):
            is_own = False
    assert total is not None
    return total


def are_equal(weights: Sequence[Weight], pairs: tuple[tuple[int, int], ...]) -> bool:
    """Whether both edges of every pair have the same float as weight."""
    for edge, other in pairs:
        ours, theirs = weights[edge], weights[other]
        if ours.__class__ is not float or theirs.__class__ is not float or ours != theirs:
            return False
    return True


def sum_terms(
    terms: tuple[tuple[int, int], ...],
    features: Sequence[Any],
    weights: Sequence[Weight],
    *,
    is_written: bool,
) -> tuple[Tensor, bool]:
    """The sum, and whether it is a tensor of its own."""
    (edge, source), *others = terms
    total, weight = features[source], weights[edge]
    is_own = weight.__class__ is not float or weight != 1.0
    if is_own:
        total = total * weight
    for edge, source in others:
        total = add(total, features[source], weights[edge], in_place=is_own)
        is_own = True
    return (total.clone(), True) if is_written and not is_own else (total, is_own)


def add(total: Tensor, feature: Tensor, weight: Weight, *, in_place: bool) -> Tensor:
    """`total + weight * feature`."""
    if weight.__class__ is float:
        if in_place and total.dtype is feature.dtype:
            return total.add_(feature, alpha=weight)
        return torch.add(total, feature, alpha=weight)
    if in_place and total.dtype is feature.dtype:
        return total.addcmul_(feature, weight)
    return torch.addcmul(total, feature, weight)


def share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether both tensors are views of one allocation."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
