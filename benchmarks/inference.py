"""Inference of both executors over the static backbone, at MACs ratios of about .5, .75 and 1.0.

    python benchmarks/inference.py [--rounds 15] [--batch 1 16] [--output FILE.jsonl]

Paths are random per instance (`dggraph.evaluation.timing.sample_paths`), every edge between the
nodes that are kept is open. `dense` is masked execution; `sparse` skips, and is what `auto` runs
here, so that the column `auto` of older rows differs from it by noise alone. C++ kernels are used
where they are built; DGGRAPH_KERNELS=0 turns them off.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

import dggraph
from dggraph.evaluation.timing import time_inference
from dggraph.models.small_resnet import SmallResNet
from dggraph.ops import kernels

CASES: list[tuple[str, Callable[[], nn.Module], int, int, str]] = [
    ("resnet50 128 px", torchvision.models.resnet50, 128, 16, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 1, "stage"),
    ("cifar resnet56", lambda: SmallResNet(56, 16), 32, 16, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 16, "node"),
    ("cifar resnet56", lambda: SmallResNet(56, 16), 32, 16, "node"),
    ("mobilenet_v2 160 px", torchvision.models.mobilenet_v2, 160, 16, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 1, "node"),
    ("mobilenet_v2 64 px", torchvision.models.mobilenet_v2, 64, 1, "stage"),
    ("mobilenet_v2 64 px", torchvision.models.mobilenet_v2, 64, 1, "node"),
    ("mobilenet_v2 224 px", torchvision.models.mobilenet_v2, 224, 1, "stage"),
]


def main(rounds: int, batches: set[int], output: Path | None) -> None:
    for name, build, side, batch, router in CASES:
        if batch not in batches:
            continue
        torch.manual_seed(0)
        backbone = build().eval()
        x = torch.randn(batch, 3, side, side)
        net = dggraph.convert(backbone, x[:1], router=router).eval()
        for kept in (0.5, 0.75, 1.0):
            realised, timings = time_inference(net, backbone, x, kept, rounds=rounds)
            row = {
                "case": name,
                "batch": batch,
                "router": router,
                "kernels": kernels.load(),
                "kept": round(realised, 3),
            }
            row |= {
                t.name: [round(t.ratio, 3), round(t.low, 3), round(t.high, 3), t.is_reliable]
                for t in timings[1:]
            }
            print(json.dumps(row), flush=True)
            if output:
                with output.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    dggraph.keep_freed_memory()  # for both sides
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="batch sizes to run")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    main(arguments.rounds, set(arguments.batch), arguments.output)
