"""What a stage with one router runs for a pattern of open edges, worked out once and kept.

Which edges are open follows from one comparison with the threshold. That pattern is the key of a
`PatternPlan`: which nodes run, what each sums, which sum goes on from the one before, and which
features are no longer needed afterwards. Weights, threshold and temperature are read at every pass.

The images of a batch that share a pattern run as one. Decisions are Python floats: a numpy call
costs a microsecond whatever its size, and a stage of ten edges would need twenty of them.

Shape suffixes: B instances, E edges.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dggraph.ops.device_copies import to_device
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


@dataclass(frozen=True, slots=True, eq=False)
class PatternPlan:
    """What to run for one pattern. The last sum is the stage's output."""

    sums: tuple[Sum, ...]
    is_open: tuple[bool, ...]
    """For each edge."""
    forced: int | None
    """The edge into `out` that opens at weight 1 because nothing else reaches it."""
    candidates: tuple[int, ...]
    """The edges among which the largest weight decides which one that is."""

    def weights(self, row: Sequence[float]) -> list[float]:
        """Return the weights (E,) that apply to an image whose gate gave `row`: 0 where closed."""
        weights = [
            weight if is_open else 0.0 for weight, is_open in zip(row, self.is_open, strict=True)
        ]
        if self.forced is not None:
            weights[self.forced] = 1.0
        return weights


@dataclass(frozen=True, slots=True)
class KeptPlans:
    """What a stage keeps between passes."""

    num_patterns: int
    num_bytes: int


class StagePlans:
    """The plans of one stage, by pattern; the least recently used go first."""

    def __init__(self, topology: Topology) -> None:
        self.topology, self.lock = topology, threading.Lock()
        self.into_out = topology.incoming(topology.num_vertices - 1)
        self.plans: OrderedDict[bytes, PatternPlan] = OrderedDict()
        num_edges, num_vertices = len(topology.sources), topology.num_vertices
        self.capacity = max(16, MAX_BYTES // (200 * num_vertices + 150 * num_edges))

    def kept(self) -> KeptPlans:
        """Return the number of plans, and the bytes of all their objects and keys."""
        with self.lock:
            plans = list(self.plans.items())
        return KeptPlans(len(plans), sum(map(num_bytes, plans), sys.getsizeof(self.plans)))

    def find(self, row: Sequence[float], threshold: float) -> PatternPlan | None:
        """Return the plan for the weights that a gate gave one image, (E,).

        The result is None if no live node has an edge to `out`.
        """
        closed = bytes([weight <= threshold for weight in row])
        plan = self.plans.get(closed)
        if plan is None or plan.forced is not None:
            return self._find(closed, row, threshold)
        with self.lock:
            if closed in self.plans:  # another thread may have dropped it
                self.plans.move_to_end(closed)
        return plan

    def _find(self, closed: bytes, row: Sequence[float], threshold: float) -> PatternPlan | None:
        plan = self._plan(closed, closed, row, threshold)
        if plan is None or plan.forced is None:
            return plan
        best = max(plan.candidates, key=lambda edge: (row[edge], edge))  # ties: the later node
        if best == plan.forced:
            return plan
        return self._plan(closed + best.to_bytes(4, "little"), closed, row, threshold)

    def _plan(
        self, key: bytes, closed: bytes, row: Sequence[float], threshold: float
    ) -> PatternPlan | None:
        """Return the plan that is kept at `key`, or a new one."""
        with self.lock:
            plan = self.plans.get(key)
            if plan is not None:
                self.plans.move_to_end(key)
                return plan
        is_open_BE = settle(np.asarray([row]), self.topology, np.asarray(threshold), False) != 0
        if not is_open_BE[0, self.into_out].any():
            return None
        plan = plan_pattern(is_open_BE[0], np.frombuffer(closed, np.bool_), self.topology)
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
    forced = np.flatnonzero(is_open_E & closed_E).tolist()
    into_out = range(*topology.incoming(topology.num_vertices - 1).indices(len(is_open_E)))
    live_V = live_vertices(is_open_E[None], topology)[0]
    return PatternPlan(
        sums=tuple(sums),
        is_open=tuple(is_open_E.tolist()),
        forced=forced[0] if forced else None,
        candidates=tuple(edge for edge in into_out if forced and live_V[topology.sources[edge]]),
    )


def num_bytes(value: Any) -> int:
    """Return the bytes of a plan and all that it consists of.

    Numbers do not count: Python shares the small ones.
    """
    if isinstance(value, int):
        return 0
    fields = (getattr(value, name) for name in getattr(value, "__slots__", ()))
    return sys.getsizeof(value) + sum(map(num_bytes, value if type(value) is tuple else fields))


def weights_for(
    plan: PatternPlan,
    rows: Sequence[Sequence[float]],
    like: Tensor,
    parts_BEP: Tensor | None = None,
) -> Sequence[Weight]:
    """Return the weight of each edge: a float if all images share it, else (B, 1, ..., 1).

    Where edges have several, `parts_BEP`, it is a tensor (B, ...).
    """
    if parts_BEP is not None:
        parts: list[Weight] = list(parts_BEP.to(like.dtype).unbind(1))
        if plan.forced is not None:
            parts[plan.forced] = 1.0
        return parts
    if len(rows) == 1 and plan.forced is None:
        return rows[0]
    weights: list[Weight] = list(rows[0])
    if len(rows) > 1:
        columns: dict[int, list[float]] = {}
        for edge, is_open in enumerate(plan.is_open):
            column = [row[edge] for row in rows] if is_open else []
            if any(weight != weights[edge] for weight in column):
                columns[edge] = column
        if columns:
            values = torch.tensor(list(columns.values()), dtype=like.dtype, device="cpu")
            shape = (len(columns), len(rows), *[1] * (like.ndim - 1))
            each = to_device(values, like.device).view(shape).unbind(0)
            for edge, weight_B in zip(columns, each, strict=True):
                weights[edge] = weight_B
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
