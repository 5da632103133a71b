"""Gate diagnostics: edges that never change, unreached blocks, few paths, and what to do.

`GateHealth` takes one batch at a time. It stores one number per edge and vertex, and 16 bytes and a
count for each distinct path, up to `MAX_PATHS` of them.

Shape suffixes: B instances, E edges, V vertices of a stage.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dggraph.errors import InputError
from dggraph.graph.ir import CandidateEdge, DynamicGraph
from dggraph.network.cost import entropy_bits, iterate_gates, path_keys
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.ops.liveness import leads_to_out, live_vertices

TIE_MARGIN = 1e-4
"""Closer to the threshold than this, an edge may open or close by chance.

Differences between executors and batch sizes are smaller.
"""
MAX_PATHS = 1 << 20
MANY_TIES = 0.01
DOMINANT = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The behaviour of the gates over a set.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> dggraph.check_gates(net, [torch.rand(4, 3, 32, 32)]).num_instances
        4
    """

    num_instances: int
    open_fractions: dict[CandidateEdge, float]
    """Share of instances for which the edge was active."""
    tie_fractions: dict[CandidateEdge, float]
    """Share of instances for which an edge was closer than 1e-4 to the threshold, if not 0.

    Only edges with a live source count.
    """
    live_fractions: dict[str, float]
    """For each block, the share of instances that reach it."""
    num_paths: int
    """The number of distinct paths; a lower bound from 1,048,576 on."""
    path_entropy_bits: float
    """Entropy of the distribution of paths.

    It is 0 if all instances take one path, and log2(num_instances) if each takes another one.
    """
    warnings: tuple[str, ...]
    """What is wrong, why it matters and what to do, a sentence or two each."""

    @property
    def always_open(self) -> tuple[CandidateEdge, ...]:
        """Edges that were active for every instance."""
        return tuple(edge for edge, fraction in self.open_fractions.items() if fraction == 1)

    @property
    def always_closed(self) -> tuple[CandidateEdge, ...]:
        """Edges that were active for no instance."""
        return tuple(edge for edge, fraction in self.open_fractions.items() if fraction == 0)

    @property
    def never_live(self) -> tuple[str, ...]:
        """Blocks that no instance reached."""
        return tuple(node for node, fraction in self.live_fractions.items() if fraction == 0)


@dataclass(slots=True)
class StageCounts:
    """Counts over the gates of one stage."""

    open_E: Tensor
    ties_E: Tensor
    live_V: Tensor
    used_V: Tensor
    """Instances for which the vertex is live and open edges lead on from it to `out`."""
    runs_V: Tensor
    """Instances for which the sparse executor computes the vertex.

    With `stage` routers these are the used vertices, with `node` routers the live ones.
    """
    lowest_E: Tensor
    highest_E: Tensor


@dataclass(slots=True)
class GateHealth:
    """Counts the decisions of gates, batch by batch, for `report`.

    `check_gates` does this for a complete set.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> health = dggraph.evaluation.GateHealth(net.graph)
        >>> health.update(net.eval()(torch.rand(4, 3, 32, 32), return_gates=True)[1])
        >>> health.report().num_instances
        4
    """

    graph: DynamicGraph
    num_instances: int = 0
    paths: Counter[bytes] = field(default_factory=Counter)
    stages: dict[str, StageCounts] = field(default_factory=dict)

    def update(self, gates: Gates) -> None:
        """Count the gates of a batch; gates with gradients, as in a training step, are accepted."""
        for stage, weights_BE in gates.weights.items():
            layout = gates.table.stages[stage].topology
            open_BE, raw_BE = weights_BE.detach() != 0, gates.raw[stage].detach().double()
            live_BV = live_vertices(open_BE, layout) > 0
            used_BV = live_BV & (leads_to_out(open_BE, layout) > 0)
            runs_BV = used_BV if gates.table.is_useful_only else live_BV
            source_live_BE = live_BV[:, list(layout.sources)]
            ties_BE = source_live_BE & (
                (raw_BE - gates.thresholds[stage].double()).abs() < TIE_MARGIN
            )
            counts = StageCounts(
                open_E=open_BE.sum(0).cpu(),
                ties_E=ties_BE.sum(0).cpu(),
                live_V=live_BV.sum(0).cpu(),
                used_V=used_BV.sum(0).cpu(),
                runs_V=runs_BV.sum(0).cpu(),
                lowest_E=raw_BE.masked_fill(~source_live_BE, math.inf).amin(0).cpu(),
                highest_E=raw_BE.masked_fill(~source_live_BE, -math.inf).amax(0).cpu(),
            )
            self.stages[stage] = (
                _add(self.stages[stage], counts) if stage in self.stages else counts
            )
        keys = path_keys(gates)
        self.num_instances += len(keys)
        for key in keys:
            if key in self.paths or len(self.paths) < MAX_PATHS:
                self.paths[key] += 1

    def report(self) -> HealthReport:
        """Return the report on all batches so far.

        Raises:
            InputError: no batch was counted.
        """
        if not self.num_instances:
            raise InputError(
                "no gates were counted; call `update` with the gates of at least one image."
            )
        opens: dict[CandidateEdge, float] = {}
        ties: dict[CandidateEdge, float] = {}
        lives: dict[str, float] = {}
        for stage, counts in self.stages.items():
            edges, blocks = self.graph.edges(stage), self.graph.nodes(stage)[1:-1]
            opens |= zip(edges, (counts.open_E / self.num_instances).tolist(), strict=True)
            shares = zip(edges, (counts.ties_E / self.num_instances).tolist(), strict=True)
            ties |= {edge: share for edge, share in shares if share > 0}
            lives |= zip(
                (node.name for node in blocks),
                (counts.live_V[1:-1] / self.num_instances).tolist(),
                strict=True,
            )
        warnings = (*self._path_warnings(), *self._block_warnings(), *self._tie_warnings(ties))
        return HealthReport(
            num_instances=self.num_instances,
            open_fractions=opens,
            tie_fractions=ties,
            live_fractions=lives,
            num_paths=len(self.paths),
            path_entropy_bits=entropy_bits(self.paths),
            warnings=warnings,
        )

    def _path_warnings(self) -> list[str]:
        """Return at most one warning: one image, one path, nothing saved, or one path for most."""
        (_, most), *_ = self.paths.most_common(1)
        if len(self.paths) == 1:
            if self.num_instances == 1:
                return [
                    "Only one image was counted, so it is unknown how paths differ; pass more"
                    " images."
                ]
            if all(
                torch.equal(counts.lowest_E, counts.highest_E) for counts in self.stages.values()
            ):
                return [
                    "Every image takes one path and gets the same weights: the routers are"
                    " untrained, or ignore the image. Train the network with losses.budget before"
                    " you study its paths."
                ]
            return [
                "Every image takes one path: weights differ between images, but none crosses the"
                " threshold. Train with losses.budget at a lower target, or move the threshold with"
                " dggraph.calibrate."
            ]
        if all(
            bool((counts.runs_V[1:-1] == self.num_instances).all())
            for counts in self.stages.values()
        ):
            return [
                "Edges close, but every block runs for every image, so almost nothing is saved: a"
                " closed edge saves compute only if its block dies. Train with losses.budget, whose"
                " gradient acts on dead nodes."
            ]
        if most >= DOMINANT * self.num_instances:
            return [
                f"{most / self.num_instances:.0%} of the images take the same path, so there is"
                " little routing. Compare with that fixed path at the same MACs before claiming a"
                " gain."
            ]
        return []

    def _block_warnings(self) -> list[str]:
        """Return warnings about blocks that no image reaches, and blocks that run in vain."""
        dead: list[str] = []
        wasted: list[str] = []
        for stage, counts in self.stages.items():
            for vertex, node in enumerate(self.graph.nodes(stage)[1:-1], start=1):
                if not counts.live_V[vertex]:
                    dead.append(node.name)
                elif counts.runs_V[vertex] and not counts.used_V[vertex]:
                    wasted.append(node.name)
        found = []
        if dead:
            found.append(
                f"No image reaches {_list(dead)}: the task's gradient does not reach it either. If"
                " it should be used, train with losses.budget at a target above the current MACs"
                " ratio, and lower the target later; otherwise leave it out with `stages=`."
            )
        if wasted:
            found.append(
                f"{_list(wasted)}: computed, but for no image does an open edge lead on to `out`,"
                " so the MACs are wasted. Train with losses.budget at a lower target, or use"
                ' router="stage", which decides before it computes.'
            )
        return found

    def _tie_warnings(self, ties: dict[CandidateEdge, float]) -> list[str]:
        found: list[str] = []
        close = sorted(
            (edge for edge, share in ties.items() if share >= MANY_TIES),
            key=lambda edge: -ties[edge],
        )
        if close:
            worst = close[0]
            names = [f"{edge.source} -> {edge.target}" for edge in close]
            found.append(
                f"{_list(names)}: closer than {TIE_MARGIN:g} to the threshold for up to"
                f" {ties[worst]:.0%} of the images, so the same image may take another path in"
                " another batch or executor. Change the threshold slightly with net.set_threshold."
            )
        if len(self.paths) >= MAX_PATHS:
            found.append(
                f"There are {MAX_PATHS} different paths or more; later ones were not counted."
            )
        return found


def check_gates(net: DynamicNetwork, batches: Iterable[Any]) -> HealthReport:
    """Run `net` over a set in eval mode and report on its gates.

    Args:
        net: a converted network; its modes are restored.
        batches: images (B, C, H, W), or tuples that begin with them.

    Raises:
        InputError: there are no stages, or no images.
        GateError: an edge weight is NaN.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> dggraph.check_gates(net, [torch.rand(4, 3, 32, 32)]).num_instances
        4
    """
    require_converted(net, "check_gates")
    health = GateHealth(net.graph)
    for gates in iterate_gates(net, batches):
        health.update(gates)
    return health.report()


def _add(one: StageCounts, other: StageCounts) -> StageCounts:
    return StageCounts(
        open_E=one.open_E + other.open_E,
        ties_E=one.ties_E + other.ties_E,
        live_V=one.live_V + other.live_V,
        used_V=one.used_V + other.used_V,
        runs_V=one.runs_V + other.runs_V,
        lowest_E=torch.minimum(one.lowest_E, other.lowest_E),
        highest_E=torch.maximum(one.highest_E, other.highest_E),
    )


def _list(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
