"""A converted network on batches of real images, beside its static backbone.

Both run in two forms, as they are (`plain`) and prepared for inference by the same steps
(`optimised`). In each form the static network runs twice: module by module, as its users run it,
and inlined by the executor of the dynamic one, which shows how much of a gain is inlining.

The executor chooses how a batch of several patterns runs, by a model of costs (`ops/stage_costs`).
The dynamic network can therefore also be timed with each way forced: regret is what a perfect
choice between them would save.

A round runs every batch through every network, and its ratios are of summed times, so that each
image counts by the time it takes. The order of the networks rotates from batch to batch.

Shape suffixes: B images, E edges of a stage.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.evaluation.static_twin import static_twin, with_weights_of
from dggraph.evaluation.timing import MAX_SPREAD, wait_for
from dggraph.network.inference import optimize_for_inference
from dggraph.network.network import DynamicNetwork
from dggraph.ops.stage_costs import Way, forced_way, noted_ways
from dggraph.ops.stage_plans import KeptPlans
from dggraph.system.modes import evaluating

Form = Literal["plain", "optimised"]
Name = Literal["static", "inlined", "dynamic"]
NAMES: tuple[Name, ...] = ("static", "inlined", "dynamic")
MIN_ROUNDS = 3
WARM_UP = 2
"""Rounds that do not count: plans are made in the first, and blocks inlined in the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast one network is on batches of one size."""

    name: Name
    images_per_second: float
    """In the median round."""
    p50: float
    """Median over all passes, in seconds, as the next two."""
    p90: float
    p99: float
    ratio: float
    """Median over rounds of its time / the static modules' in the same round."""
    low: float
    """Lower quartile of the ratios."""
    high: float
    """Upper quartile of the ratios."""

    @property
    def is_reliable(self) -> bool:
        """Whether the quartiles are at most 10 % of the ratio apart."""
        return self.high - self.low <= MAX_SPREAD * self.ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The static and the dynamic network in one form, on batches of one size."""

    form: Form
    batch_size: int
    executor: str
    """What the dynamic network says about its last pass."""
    speeds: tuple[Speed, ...]
    """Those of the static network by modules, the inlined one, and the dynamic one."""
    over_inlined: float
    """Median over rounds of the dynamic network's time over the inlined static one's."""
    chosen: Mapping[Way, int]
    """How often each way was chosen: once for each stage and batch of several patterns."""
    ways: Mapping[Way, float]
    """For each forced way, the median over rounds of its time over the chosen ways'."""
    plans: Mapping[str, KeptPlans]
    """What the dynamic network keeps of the patterns of all batches so far, per stage."""

    @property
    def regret(self) -> float:
        """The share of its time by which the best forced way is faster than the chosen ways."""
        return max(0.0, 1 - min(self.ways.values(), default=1.0))

    def speed(self, name: Name) -> Speed:
        """Return the speed of one of the three networks."""
        return self.speeds[NAMES.index(name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """How much of the network a set of images uses, and how far apart their paths are."""

    kept: tuple[float, ...]
    """The MACs ratio of each image."""
    num_paths: int
    """Distinct paths of the images."""
    shared: Mapping[str, float]
    """Per stage, the share of images whose open edges are those of the most images."""


class Contestants:
    """The networks to compare, made once for all batch sizes.

    Args:
        net: a converted network; it is run in eval mode.
        backbone: what it was converted from, with any weights.

    Raises:
        InputError: the weights of `net` do not fit `backbone`.
    """

    def __init__(self, net: DynamicNetwork, backbone: nn.Module) -> None:
        twin = static_twin(net, backbone)
        prepared, fast = optimize_for_inference(twin), optimize_for_inference(net)
        self.forms: dict[Form, dict[Name, nn.Module]] = {
            "plain": {"static": with_weights_of(net, backbone), "inlined": twin, "dynamic": net},
            "optimised": {"static": prepared.lowered, "inlined": prepared, "dynamic": fast},
        }
        self.dynamic: dict[Form, DynamicNetwork] = {"plain": net, "optimised": fast}

    def compare(
        self,
        batches: Sequence[Tensor],
        *,
        ways: Sequence[Way] = (),
        rounds: int = 7,
        clock: Callable[[], float] = time.perf_counter,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Comparison]:
        """Time all networks on `batches`, in both forms.

        Args:
            batches: images (B, C, H, W), all batches of one size.
            ways: how to run batches of several patterns, each forced in turn.
            rounds: number of counted rounds, at least 3.
            clock: seconds, for example one of `timing.CLOCKS`.
            progress: called with the number of rounds done and the total.

        Raises:
            InputError: there are fewer than 3 rounds, or no batches, or batches of several sizes.
        """
        sizes = {len(batch) for batch in batches}
        if rounds < MIN_ROUNDS or len(sizes) != 1:
            raise InputError(
                f"rounds={rounds} and batches of {sorted(sizes) or 'no images'}: a comparison needs"
                f" at least {MIN_ROUNDS} rounds, and batches of one size."
            )
        (size,) = sizes
        found, total = [], len(self.forms) * (rounds + WARM_UP)
        with evaluating(self.dynamic["plain"]), torch.inference_mode():
            for place, (form, models) in enumerate(self.forms.items()):
                seconds: list[dict[str, list[float]]] = []
                runs = {str(name): _run(model, None) for name, model in models.items()}
                runs |= {way: _run(models["dynamic"], way) for way in ways}
                for number, timed in enumerate(_rounds(runs, batches, clock)):
                    seconds.append(timed)
                    progress(place * (rounds + WARM_UP) + number + 1, total)
                    if number + 1 == rounds + WARM_UP:
                        break
                with noted_ways() as chosen:
                    for batch in batches:
                        models["dynamic"](batch)
                counted = seconds[WARM_UP:]
                found.append(_comparison(form, size, self.dynamic[form], chosen, ways, counted))
        return found


def path_facts(net: DynamicNetwork, batches: Sequence[Tensor]) -> PathFacts:
    """Run `batches`, (B, C, H, W) each, through `net`, and return how far apart their paths are.

    Raises:
        InputError: `net` has no stages.
    """
    if not net.graph.stages:
        raise InputError(f"this {net.graph.name} has no stages, so its images have no paths.")
    kept: list[float] = []
    patterns: dict[str, list[tuple[bool, ...]]] = {stage: [] for stage in net.graph.stages}
    with evaluating(net):
        for batch in batches:
            _, gates = net(batch, return_gates=True)
            kept += (gates.macs() / net.macs_table.static).tolist()
            for stage, open_BE in gates.open.items():
                patterns[stage] += map(tuple, open_BE.tolist())
    return PathFacts(
        kept=tuple(kept),
        num_paths=len(set(zip(*patterns.values(), strict=True))),
        shared={
            stage: Counter(found).most_common(1)[0][1] / len(found)
            for stage, found in patterns.items()
        },
    )


def _run(model: nn.Module, way: Way | None) -> Callable[[Tensor], Any]:
    def run(batch: Tensor) -> Any:
        with forced_way(way):
            return model(batch)

    return run


def _rounds(
    runs: Mapping[str, Callable[[Tensor], Any]],
    batches: Sequence[Tensor],
    clock: Callable[[], float],
) -> Iterator[dict[str, list[float]]]:
    """Yield, round after round, the seconds of each run on each batch."""
    turn, names = 0, list(runs)
    while True:
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for batch in batches:
            turn = (turn + 1) % len(names)
            for name in names[turn:] + names[:turn]:
                start = clock()
                runs[name](batch)
                wait_for(batch.device)
                seconds[name].append(clock() - start)
        yield seconds


def _comparison(
    form: Form,
    batch_size: int,
    dynamic: DynamicNetwork,
    chosen: Mapping[Way, int],
    ways: Sequence[Way],
    rounds: Sequence[Mapping[str, list[float]]],
) -> Comparison:
    names: list[str] = [*NAMES, *ways]
    sums = {name: [sum(timed[name]) for timed in rounds] for name in names}

    def ratios(name: str, baseline: Name) -> list[float]:
        pairs = zip(sums[name], sums[baseline], strict=True)
        return statistics.quantiles([one / other for one, other in pairs], n=4)

    speeds = []
    for name in NAMES:
        low, ratio, high = ratios(name, "static")
        passes = [seconds for timed in rounds for seconds in timed[name]]
        cuts = statistics.quantiles(passes, n=100, method="inclusive")
        num_images = batch_size * len(rounds[0][name])
        speeds.append(
            Speed(
                name=name,
                images_per_second=num_images / statistics.median(sums[name]),
                p50=cuts[49],
                p90=cuts[89],
                p99=cuts[98],
                ratio=ratio,
                low=low,
                high=high,
            )
        )
    return Comparison(
        form=form,
        batch_size=batch_size,
        executor=dynamic.last_run,
        speeds=tuple(speeds),
        over_inlined=ratios("dynamic", "inlined")[1],
        chosen=dict(chosen),
        ways={way: ratios(way, "dynamic")[1] for way in ways},
        plans=dynamic.kept_plans(),
    )
