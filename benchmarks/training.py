"""A training step of the converted network, every edge open, over the static backbone's; peak
memory; squeeze-and-excitation beside it.

    python benchmarks/training.py [--rounds 20] [--compile] [--only NAME]

A step is forward, cross entropy, backward and SGD with momentum. All edges are held open at weights
near 1 / (edges into the node), so that aggregation does its full work; routers and gates run. Peak
memory counts the tensors a step allocates.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from memory import peak_bytes
from torch import nn

import dggraph
from dggraph.evaluation.timing import compare
from dggraph.models.small_resnet import SmallResNet
from dggraph.network.gate_contexts import pinned_gates
from dggraph.ops import kernels

CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet50, 128 px, batch 8": (lambda: timm.create_model("resnet50"), 128, 8),
    "cifar resnet32, batch 64": (lambda: SmallResNet(32, 16), 32, 64),
    "mobilenet_v2, 128 px, batch 16": (lambda: torchvision.models.mobilenet_v2(), 128, 16),
}


def opened(net: Any) -> dict[str, torch.Tensor]:
    """Every edge above the threshold; thresholds go to 0 so that the weights may be small enough
    for sums to stay tame.
    """
    weights = {}
    for name, stage in net.macs_table.stages.items():
        net.lowered.get_submodule(f"dg_{name}").get_buffer("threshold").zero_()
        counts = torch.bincount(torch.tensor(stage.layout.targets))
        weights[name] = torch.tensor(
            [1.0 / float(counts[target]) for target in stage.layout.targets]
        )
    return weights


def step(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9
    )
    labels = torch.arange(len(x)) % 10

    def once() -> object:
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return once


def measure(name: str, rounds: int, is_compiled: bool) -> dict[str, Any]:
    build, side, batch = CASES[name]
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    static = build().train()
    models: dict[str, nn.Module] = {}
    for router in ("node", "stage"):
        net = dggraph.convert(static, x[:1], router=router).train()
        pinned_gates(net, opened(net)).__enter__()
        models[f"dggraph {router}"] = net
    if name.startswith("resnet50") and not is_compiled:
        models["timm seresnet50"] = timm.create_model("seresnet50").train()
    row: dict[str, Any] = {"case": name, "compiled": is_compiled, "kernels": kernels.load()}
    if not is_compiled:
        base = peak_bytes(step(static, x))
        row["peak memory"] = {
            label: peak_bytes(step(model, x)) / base for label, model in models.items()
        }
    wrap = torch.compile if is_compiled else (lambda model: model)
    timings = compare(
        step(wrap(static), x),
        {label: step(wrap(model), x) for label, model in models.items()},
        rounds=rounds,
    )
    row["seconds"] = timings[0].seconds
    row["time"] = {
        t.name: {"ratio": t.ratio, "low": t.low, "high": t.high, "is_reliable": t.is_reliable}
        for t in timings[1:]
    }
    return row


if __name__ == "__main__":
    dggraph.keep_freed_memory()  # for both sides
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path, help="Append each row to this .jsonl.")
    arguments = parser.parse_args()
    for case in CASES:
        if arguments.only in case:
            found = measure(case, arguments.rounds, arguments.compile)
            print(json.dumps(found), flush=True)
            if arguments.output:
                with arguments.output.open("a") as stream:
                    stream.write(json.dumps(found) + "\n")
