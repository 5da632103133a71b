"""What converting costs: CPU time of `convert` with checks and of `dggraph inspect`, and memory.

    python benchmarks/conversion.py [--models resnet50 mobilenet_v2 vit_b_16] [--rounds 5]
        [--output FILE.jsonl]

`convert` runs in a process of its own for each model, after the conversion of a small network. A
static pass of one image at the same size gives the scale, and so does a process that only imports
torch and torchvision. Memory is what the process grows by, over the size of the weights. Set
OMP_NUM_THREADS for the number of threads. With two, waiting threads count as CPU time, so that
figures hold for a quiet machine alone.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCALE = "import torch, torchvision"


def measure_convert(model: str, rounds: int) -> dict[str, Any]:
    """Convert `model` in this process."""
    import torch

    import dggraph
    from dggraph.models.registry import load_model

    dggraph.convert("dggraph:resnet20_8")
    loaded = load_model(model)
    backbone = loaded.model.eval()
    x = torch.rand(1, *loaded.preprocess.input_size)
    size = sum(one.numel() * one.element_size() for one in backbone.parameters())
    before = _peak()
    first = _seconds(lambda: dggraph.convert(loaded))
    peak = (_peak() - before) / size
    converting = [_seconds(lambda: dggraph.convert(loaded)) for _ in range(rounds)]
    with torch.no_grad():
        static = [_seconds(lambda: backbone(x)) for _ in range(rounds)]
    return {
        "convert": round(statistics.median(converting), 2),
        "first": round(first, 2),
        "static image": round(statistics.median(static), 3),
        "memory over weights": round(peak, 1),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds(function: Any) -> float:
    begun = time.process_time()
    function()
    return time.process_time() - begun


def seconds_of_process(arguments: list[str]) -> float:
    """CPU seconds of a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: argparse.Namespace) -> None:
    for model in arguments.models:
        script = [__file__, "--models", model, "--rounds", str(arguments.rounds), "--here"]
        found = subprocess.run(
            [sys.executable, *script], check=True, stdout=subprocess.PIPE, text=True
        )
        inspecting = ["-m", "dggraph", "inspect", model]
        processes = [
            (seconds_of_process(inspecting), seconds_of_process(["-c", SCALE]))
            for _ in range(arguments.rounds)
        ]
        row = {"model": model, "threads": os.environ.get("OMP_NUM_THREADS", "default")}
        row |= json.loads(found.stdout)
        for name, seconds in zip(("inspect", SCALE), zip(*processes, strict=True), strict=True):
            row[name] = round(statistics.median(seconds), 2)
        print(json.dumps(row), flush=True)
        if arguments.output:
            with arguments.output.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet50", "mobilenet_v2", "vit_b_16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="append each row to this .jsonl")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_convert(options.models[0], options.rounds)))
    else:
        main(options)
