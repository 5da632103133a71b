"""Paired timing: each round runs all contestants once, and compares them with its baseline.

The order rotates from round to round. Changing load on the machine affects seconds, but hardly the
ratios; if it affects the ratios too, the result is marked as unreliable.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork, Executor
from dggraph.ops.macs import path_share
from dggraph.system.modes import keeping_modes

MAX_SPREAD = 0.1
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by name. Other programs slow the first down; the second adds up the time of all threads
and does not count a GPU's.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The time of one contestant, relative to the baseline."""

    name: str
    seconds: float
    """Median over rounds."""
    ratio: float
    """Median over rounds of its time / the baseline's in the same round; below 1 is faster."""
    low: float
    """Lower quartile of the ratios."""
    high: float
    """Upper quartile of the ratios."""
    is_reliable: bool
    """Whether the quartiles are at most 10 % of the ratio apart."""


def compare(
    baseline: Callable[[], object],
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time `contestants` against `baseline`, interleaved, after two rounds of warm-up.

    Args:
        baseline: the function to compare with.
        contestants: functions by name.
        rounds: number of counted rounds, at least 3.
        clock: seconds, for example one of `CLOCKS`.

    Returns:
        The baseline first, then the contestants in order.

    Raises:
        InputError: there are fewer than 3 rounds.
    """
    seconds = interleaved({"baseline": baseline, **contestants}, rounds=rounds, clock=clock)
    return [_timing(name, own, seconds["baseline"]) for name, own in seconds.items()]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    clock: Callable[[], float] = time.perf_counter,
    burst: int = 0,
) -> dict[str, list[float]]:
    """Return the seconds of every run in every round, after two rounds of warm-up.

    Args:
        runs: functions by name.
        rounds: number of counted rounds, at least 3.
        clock: as for `compare`.
        burst: 0 to time one call in each turn. Otherwise a turn makes that many calls that are not
            timed, then that many that are: a network that runs alone finds its own weights in the
            caches, and one that takes turns finds those of the others.

    Raises:
        InputError: there are fewer than 3 rounds.
    """
    if rounds < 3:
        raise InputError(f"rounds={rounds}: quartiles need at least 3 rounds.")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(-2, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            run, num_calls = runs[name], max(1, burst)
            for _ in range(burst):
                run()
            start = clock()
            for _ in range(num_calls):
                run()
            if number >= 0:
                seconds[name].append((clock() - start) / num_calls)
    return seconds


def time_inference(
    net: DynamicNetwork,
    backbone: nn.Module,
    x: Tensor,
    kept: float,
    *,
    rounds: int = 15,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, list[Timing]]:
    """Time both executors on random paths against the static backbone.

    Args:
        net: the converted `backbone`.
        backbone: the static network.
        x: images (B, C, H, W).
        kept: fraction of the MACs that paths should keep, see `sample_paths`.
        rounds: number of counted rounds.
        clock: seconds, for example one of `CLOCKS`.

    Returns:
        The actual MACs ratio, and the timings: baseline, `dense`, `sparse`, which is what `auto`
        runs here.
    """
    weights, realised = sample_paths(net, kept, len(x))
    executor = net.executor

    def finished(output: object) -> object:
        wait_for(x.device)
        return output

    def run(name: Executor) -> Callable[[], object]:
        def once() -> object:
            net.executor = name
            return finished(net(x))

        return once

    try:
        with keeping_modes(net, backbone), torch.no_grad(), pinned_gates(net, weights):
            net.eval()
            backbone.eval()
            return realised, compare(
                lambda: finished(backbone(x)),
                {name: run(name) for name in ("dense", "sparse")},
                rounds=rounds,
                clock=clock,
            )
    finally:
        net.executor = executor


def wait_for(device: torch.device) -> None:
    """Wait until `device` has done its work; a call returns before a GPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def sample_paths(
    net: DynamicNetwork, kept: float, num_instances: int, seed: int = 0
) -> tuple[dict[str, Tensor], float]:
    """Draw random paths that keep about `kept` of the static network's MACs.

    Random nodes are closed, and every edge between the others is open.

    Args:
        net: a converted network.
        kept: fraction of all MACs, including those outside the routed blocks.
        num_instances: B.
        seed: seed of the choice of nodes.

    Returns:
        Per stage (B, E) weights from 0.6 to 0.9, 0 where closed, for `pinned_gates`; and their
        mean MACs ratio.

    Raises:
        InputError: no path keeps as little as `kept`.
    """
    generator = torch.Generator().manual_seed(seed)
    table = net.macs_table
    nodes = [
        (name, vertex)
        for name, stage in table.stages.items()
        for vertex in range(1, stage.topology.num_vertices - 1)
    ]
    rows: dict[str, list[Tensor]] = {name: [] for name in table.stages}
    total = 0.0
    for _ in range(num_instances):
        closed: set[tuple[str, int]] = set()
        opens, share = _opens(net, closed)
        for place in torch.randperm(len(nodes), generator=generator, device="cpu").tolist():
            fewer, smaller = _opens(net, closed | {nodes[place]})
            if abs(smaller - kept) < abs(share - kept):
                closed, opens, share = closed | {nodes[place]}, fewer, smaller
        total += share
        for name, open_E in opens.items():
            rows[name].append(
                open_E * (0.6 + 0.3 * torch.rand(len(open_E), generator=generator, device="cpu"))
            )
    mean = total / max(num_instances, 1)
    if abs(mean - kept) > 0.05 and kept < 1:
        raise InputError(
            f"no path of {net.graph.name} keeps {kept:.2f} of its MACs; the nearest ones keep"
            f" {mean:.2f}. Choose a larger fraction."
        )
    return {name: torch.stack(weights) for name, weights in rows.items()}, mean


def _opens(net: DynamicNetwork, closed: set[tuple[str, int]]) -> tuple[dict[str, Tensor], float]:
    """Return per stage (E,) of 0 and 1 without the nodes in `closed`, and the MACs ratio."""
    opens = {
        name: torch.tensor(
            [
                float((name, source) not in closed and (name, target) not in closed)
                for source, target in zip(
                    stage.topology.sources, stage.topology.targets, strict=True
                )
            ],
            device="cpu",
        )
        for name, stage in net.macs_table.stages.items()
    }
    return opens, path_share(opens, net.macs_table)


def _timing(name: str, seconds: list[float], baseline: list[float]) -> Timing:
    ratios = [one / other for one, other in zip(seconds, baseline, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    if name == "baseline":
        low, _, high = (
            value / statistics.median(seconds) for value in statistics.quantiles(seconds, n=4)
        )
    return Timing(
        name=name,
        seconds=statistics.median(seconds),
        ratio=median,
        low=low,
        high=high,
        is_reliable=high - low <= MAX_SPREAD * max(median, 1e-9),
    )
