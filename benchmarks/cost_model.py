"""The cost model of `executor="auto"`: fits its numbers to measured times, and prints its regret.

    python benchmarks/cost_model.py [--only NAME] [--rounds 5] [--batch 4 16] [--rows FILE.jsonl]

Each stage of some networks, plain and prepared for inference, runs batches of random paths in both
ways (`dggraph/ops/stage_costs.py`), interleaved; C++ kernels are used where they are built, and
DGGRAPH_KERNELS=0 turns them off. Rows go to FILE and stay: a later call adds to
them. The fit is of the difference between the ways, over the time of the faster one, by least
squares. Regret is the time of the chosen way over that of the faster one, less 1: with the numbers
in the package, with fitted ones, and with numbers fitted to the other networks alone.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

import dggraph
from dggraph.compiler.partition import Piece, StageProgram
from dggraph.models.small_resnet import SmallResNet
from dggraph.network.execution import run_stage
from dggraph.network.network import DynamicNetwork
from dggraph.ops import kernels
from dggraph.ops.stage_costs import RATES, WAYS, Overheads, forced_way, overheads

CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50 128 px": (torchvision.models.resnet50, 128),
    "mobilenet_v2 64 px": (torchvision.models.mobilenet_v2, 64),
    "mobilenet_v2 160 px": (torchvision.models.mobilenet_v2, 160),
    "cifar resnet56": (lambda: SmallResNet(56, 16), 32),
    "cifar resnet20": (lambda: SmallResNet(20, 16), 32),
}
KEPT = (0.5, 0.8)
"""Chances that a block is on a path."""
NUM_FITTED = len(Overheads._fields)


def measure(net: DynamicNetwork, x: torch.Tensor, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each stage and mix of paths."""
    chance = np.random.default_rng(0)
    for _ in range(3):
        net(x)
    assert net._inliner is not None
    assert net._inliner.inlined is not None
    program = net._inliner.inlined.program
    values: dict[str, Any] = {program.input: x}
    for step, _ in program.steps:
        if isinstance(step, Piece):
            inputs = [values[name] for name in step.inputs]
            values.update(zip(step.outputs, step.run(net.lowered, *inputs), strict=True))
            continue
        values[step.plan.output] = run_stage(step, net.lowered, net.graph, values, None)
        assert step.plans is not None
        for kept in KEPT:
            for number in (number for number in (2, 4, 8, 16) if number <= len(x)):
                paths = [path(step, kept, chance) for _ in range(number)]
                raw_BE = torch.tensor([paths[image % number] for image in range(len(x))])
                patterns = Counter(step.plans.find(row, 0.5) for row in raw_BE.tolist())
                if None in patterns or len(patterns) < 2:
                    continue
                seconds: dict[str, list[float]] = {way: [] for way in WAYS}
                pinned = _pinned(step, raw_BE)
                for turn in range(-1, rounds):
                    for way in WAYS if turn % 2 else WAYS[::-1]:
                        start = time.process_time()
                        with forced_way(way):
                            run_stage(pinned, net.lowered, net.graph, values, None)
                        if turn >= 0:
                            seconds[way].append(time.process_time() - start)
                num_elements = values[step.plan.entry][0].numel()
                yield {
                    "stage": step.plan.name,
                    "batch": len(x),
                    "patterns": len(patterns),
                    "us": [1e6 * statistics.median(seconds[way]) for way in WAYS],
                    "counts": [overheads(step.sizes, patterns, num_elements, way) for way in WAYS],
                }


def _pinned(step: StageProgram, raw_BE: torch.Tensor) -> StageProgram:
    """Return `step` with a router that gives `raw_BE` whatever it sees."""
    assert step.routing is not None
    routing = step.routing._replace(
        decide={0: lambda _: raw_BE}, decide_one={}, threshold=torch.tensor(0.5)
    )
    return replace(step, routing=routing)


def path(step: StageProgram, kept: float, chance: np.random.Generator) -> list[float]:
    """Return random raw weights (E,): all edges between the blocks that are on the path."""
    is_on = [True, *(chance.random(len(step.blocks)) < kept), True]
    return [
        chance.uniform(0.6, 0.9) if is_on[source] and is_on[target] else 0.0
        for source, target in zip(step.topology.sources, step.topology.targets, strict=True)
    ]


def fit(rows: list[dict[str, Any]]) -> Overheads:
    """Return the numbers, none negative, that come closest to the measured differences."""
    chosen = list(range(NUM_FITTED))
    differences = np.array([np.subtract(*row["counts"]) for row in rows])
    times = np.array([row["us"] for row in rows])
    fastest = times.min(1)
    while True:  # drop the most negative number until there is none
        found, *_ = np.linalg.lstsq(
            differences[:, chosen] / fastest[:, None],
            (times[:, 0] - times[:, 1]) / fastest,
            rcond=None,
        )
        if (found >= 0).all():
            numbers = dict(zip(chosen, found.tolist(), strict=True))
            return Overheads(*(numbers.get(place, 0.0) for place in range(NUM_FITTED)))
        chosen.pop(int(found.argmin()))


def regret(rows: list[dict[str, Any]], rates: Overheads) -> tuple[float, float]:
    """Return the mean regret of choosing by `rates`, and the one that 90 % of rows stay below."""
    found = []
    for row in rows:
        costs = [float(np.dot(counts, rates)) for counts in row["counts"]]
        found.append(row["us"][int(np.argmin(costs))] / min(row["us"]) - 1)
    return float(np.mean(found)), float(np.quantile(found, 0.9))


def report(rows: list[dict[str, Any]]) -> None:
    fitted = fit(rows)
    print("fitted", {name: round(number, 3) for name, number in fitted._asdict().items()})
    fixed = {
        way: [row["us"][place] / min(row["us"]) - 1 for row in rows]
        for place, way in enumerate(WAYS)
    }
    for way, found in fixed.items():
        print(f"regret of {way} always: {np.mean(found):.3f} (90 %: {np.quantile(found, 0.9):.3f})")
    own_rates = RATES["kernels" if rows[-1]["kernels"] else "torch"]
    for what, rates in (("the package", own_rates), ("the fit", fitted)):
        mean, most = regret(rows, rates)
        print(f"regret with the numbers of {what}: {mean:.3f} (90 %: {most:.3f}), {len(rows)} rows")
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        others = [row for row in rows if row["case"] != case]
        if others:
            mean, most = regret(own, fit(others))
            print(f"{case}, fitted to the others: {mean:.3f} (90 %: {most:.3f}), {len(own)} rows")


def main(only: str, rounds: int, batches: list[int], file: Path) -> None:
    for case, (build, side) in CASES.items():
        if only not in case:
            continue
        torch.manual_seed(0)
        net = dggraph.convert(build().eval(), torch.randn(1, 3, side, side), router="stage").eval()
        for form, one in (("plain", net), ("optimised", dggraph.optimize_for_inference(net))):
            for batch in batches:
                x = torch.randn(batch, 3, side, side)
                with torch.inference_mode(), file.open("a") as stream:
                    for row in measure(one, x, rounds):
                        row |= {"case": case, "form": form, "kernels": kernels.load()}
                        stream.write(json.dumps(row) + "\n")
        print(case, "measured", flush=True)
    report([json.loads(line) for line in file.read_text().splitlines()])


if __name__ == "__main__":
    dggraph.keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="Networks whose name contains this.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rows", type=Path, default=Path("cost_model.jsonl"))
    arguments = parser.parse_args()
    main(arguments.only, arguments.rounds, arguments.batch, arguments.rows)
