"""What keeping freed memory is worth: passes with and without `dggraph.keep_freed_memory()`.

    python benchmarks/allocator.py [--rounds 5] [--kind static dynamic] [--side 128]

The setting cannot be taken back, so every figure comes from a process of its own. Processes with
and without it take turns. Page faults say what the times should show: each is a page of memory that
the system cleared and handed out during a pass.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torchvision

import dggraph
from dggraph.evaluation.timing import sample_paths
from dggraph.network.gate_contexts import pinned_gates

KEPT, PASSES = 0.75, 11


def measure(kind: str, side: int, batch: int) -> dict[str, float]:
    """Return the seconds of CPU time and the page faults of a pass, and the peak memory in MB."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50().eval()
    x = torch.randn(batch, 3, side, side)
    if kind == "static":
        with torch.inference_mode():
            return run(model, x)
    net = dggraph.convert(model, x[:1], router="stage").eval()
    weights, _ = sample_paths(net, KEPT, batch)
    with torch.inference_mode(), pinned_gates(net, weights):
        return run(net, x)


def run(model: torch.nn.Module, x: torch.Tensor) -> dict[str, float]:
    seconds, faults = [], []
    for number in range(-3, PASSES):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
        model(x)
        if number >= 0:
            seconds.append(time.process_time() - start)
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": statistics.median(seconds),
        "faults": statistics.median(faults),
        "peak_mb": peak,
    }


def main(rounds: int, kinds: list[str], side: int, batches: list[int]) -> None:
    for kind in kinds:
        for batch in batches:
            found: dict[str, list[dict[str, float]]] = {"default": [], "keep": []}
            for number in range(rounds):
                for setting in list(found) if number % 2 else list(found)[::-1]:
                    call = [sys.executable, __file__, "--one", kind, setting, str(side), str(batch)]
                    done = subprocess.run(call, capture_output=True, text=True, check=True)
                    found[setting].append(json.loads(done.stdout))
            ratios = [
                keep["seconds"] / default["seconds"]
                for keep, default in zip(found["keep"], found["default"], strict=True)
            ]
            row = {
                "network": f"resnet50 {side} px",
                "kind": kind,
                "batch": batch,
                "time": [round(one, 3) for one in statistics.quantiles(ratios, n=4)],
            }
            for fact in ("faults", "peak_mb"):
                for setting, rows in found.items():
                    median = statistics.median(one[fact] for one in rows)
                    row[f"{setting}_{fact}"] = round(median)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", nargs="+", default=["static", "dynamic"])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, chosen, *sizes = arguments.one
        if chosen == "keep":
            assert dggraph.keep_freed_memory(), "needs glibc, without its variables set"
        print(json.dumps(measure(what, *map(int, sizes))))
    else:
        main(arguments.rounds, arguments.kind, arguments.side, arguments.batch)
