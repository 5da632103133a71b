"""How the cost of a stage grows with its depth: time and memory over the static chain, by wiring.

    python benchmarks/growth.py [--blocks 8 16 36 64] [--rounds 7] [--cpu-time]
        [--output FILE.jsonl]

A stage of N bottleneck blocks of ResNet (512 channels, 8 x 8, batch 8) runs by itself, with stage
routers. Inference is what `auto` runs; a training step is forward and backward; peak memory counts
the tensors a training step allocates. All candidate edges are open, at one over the number of edges
into the node, or the backbone's and a quarter of the others. With --output, rows that the file has
already are not measured again. Set OMP_NUM_THREADS for the number of threads.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import peak_bytes
from torch import nn
from torchvision.models.resnet import Bottleneck

import dggraph
from dggraph.evaluation.timing import Timing, compare
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.ops import kernels

WIRINGS = {
    "complete": ("complete", 1.0),
    "window(4)": ("window(4)", 1.0),
    "window(4)+entry": ("window(4)+entry", 1.0),
    "dilated(4, 2)": ("dilated(4, 2)", 1.0),
    "complete, a quarter open": ("complete", 0.25),
}
"""What is measured: a wiring, and the share of its edges beside the backbone's that is open."""
CHANNELS = 512


class Chain(nn.Module):
    """A stem, `num_blocks` blocks of one shape, and pooling."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 1)
        self.blocks = nn.Sequential(
            *(Bottleneck(CHANNELS, CHANNELS // 4) for _ in range(num_blocks))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.blocks(self.stem(x))).flatten(1)  # type: ignore[no-any-return]


def opened(net: DynamicNetwork, share: float) -> dict[str, torch.Tensor]:
    """Weights that open the backbone's edges and a random `share` of the others."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, stage in net.macs_table.stages.items():
        net.lowered.get_submodule(f"dg_{name}").get_buffer("threshold").zero_()
        targets = torch.tensor(stage.topology.targets)
        is_static = torch.tensor([edge.is_static for edge in net.graph.edges(name)])
        is_open = is_static | (torch.rand(len(targets), generator=generator) < share)
        num_open = torch.bincount(targets[is_open], minlength=int(targets.max()) + 1)
        weights[name] = is_open / num_open[targets]
    return weights


def measure(num_blocks: int, label: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    wiring, share = WIRINGS[label]
    torch.manual_seed(0)
    static, x = Chain(num_blocks), torch.randn(8, 3, 8, 8)
    net = dggraph.convert(static, x[:1], wiring=wiring, router="stage")
    weights = opened(net, share)

    def step(model: nn.Module) -> Callable[[], object]:
        def once() -> None:
            model(x).sum().backward()
            model.zero_grad()

        return once

    with pinned_gates(net, weights):
        static.eval()
        net.eval()
        with torch.no_grad():
            inference = compare(
                lambda: static(x), {label: lambda: net(x)}, rounds=rounds, clock=clock
            )
        static.train()
        net.train()
        memory = peak_bytes(step(net)) / peak_bytes(step(static))
        training = compare(step(static), {label: step(net)}, rounds=rounds, clock=clock)
    return {
        "kernels": kernels.load(),
        "edges": net.report.num_edges,
        "open": sum(int((one > 0).sum()) for one in weights.values()),
        "static seconds": [round(inference[0].seconds, 4), round(training[0].seconds, 4)],
        "inference": rounded(inference[1]),
        "training step": rounded(training[1]),
        "peak memory": round(memory, 2),
    }


def rounded(timing: Timing) -> list[float | bool]:
    return [
        *(round(one, 3) for one in (timing.ratio, timing.low, timing.high)),
        timing.is_reliable,
    ]


def main(arguments: argparse.Namespace) -> None:
    output: Path | None = arguments.output
    done = output.read_text().splitlines() if output and output.exists() else []
    known = [json.loads(line) for line in done]
    for num_blocks in arguments.blocks:
        for label in WIRINGS:
            key = {
                "blocks": num_blocks,
                "wiring": label,
                "clock": "CPU" if arguments.cpu_time else "wall",
                "threads": torch.get_num_threads(),
            }
            if any(key.items() <= row.items() for row in known):
                continue
            clock = time.process_time if arguments.cpu_time else time.perf_counter
            row = json.dumps(key | measure(num_blocks, label, arguments.rounds, clock))
            print(row, flush=True)
            if output:
                with output.open("a") as stream:
                    stream.write(row + "\n")


if __name__ == "__main__":
    dggraph.keep_freed_memory()  # for both sides
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 16, 36, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, not wall time")
    parser.add_argument("--output", type=Path, help="append each row to this .jsonl")
    main(parser.parse_args())
