"""A training step of the converted network, every edge open, over the static backbone's; peak
memory; squeeze-and-excitation beside it.

    python benchmarks/training.py --form plain|kernels|compiled [--rounds 20] [--only NAME]
        [--cpu-time] [--output FILE.jsonl]

A step is forward, cross entropy, backward and SGD with momentum; routers learn too. All edges are
open at weights near 1 / (edges into the node), so that aggregation does its full work. `static
edges` is the freshly converted network, in which only the backbone's own edges are open. Peak
memory counts the tensors a step allocates. `recompute` is the same with sums that are computed
again. With --output, rows that the file has already are not measured again. Set OMP_NUM_THREADS for
the number of threads. The page's table comes from such a file:

    python benchmarks/training.py --table docs/benchmarks/training.jsonl
"""

import argparse
import copy
import json
import os
import time
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
from dggraph.network.gate_contexts import decided_edges
from dggraph.ops import kernels
from dggraph.ops.recompute import checkpoint_aggregation

CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet50, 128 px, batch 8": (lambda: timm.create_model("resnet50"), 128, 8),
    "cifar resnet32, batch 64": (lambda: SmallResNet(32, 16), 32, 64),
    "mobilenet_v2, 128 px, batch 16": (lambda: torchvision.models.mobilenet_v2(), 128, 16),
}


def open_all_(net: Any) -> None:
    """Give every edge a weight of 1 / (edges into the node) by its router's bias, above a threshold
    of 0. Sums stay tame, and the routers learn.
    """
    for name, stage in net.macs_table.stages.items():
        routing = net.lowered.get_submodule(f"dg_{name}")
        routing.get_buffer("threshold").zero_()
        counts = torch.bincount(torch.tensor(stage.topology.targets))
        for vertex, places in decided_edges(net, name).items():
            wanted = torch.tensor([1.0 / float(counts[stage.topology.targets[e]]) for e in places])
            shift = wanted - routing.gate(vertex).anchor_E
            with torch.no_grad():
                routing.get_submodule(f"router_{vertex}").bias.copy_(torch.atanh(shift))


def check_open(net: Any, x: torch.Tensor, *, share: float) -> None:
    with torch.no_grad():
        _, gates = net(x[:2], return_gates=True)
    opened = torch.cat(list(gates.open.values()), 1)
    assert abs(float(opened.float().mean()) - share) < 1e-6, "edges are not as the row says"


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


def recomputing(once: Callable[[], object]) -> Callable[[], object]:
    def again() -> object:
        with checkpoint_aggregation():
            return once()

    return again


def measure(name: str, form: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    build, side, batch = CASES[name]
    x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    static = build().train()
    models: dict[str, nn.Module] = {}
    for router in ("node", "stage"):
        net = dggraph.convert(static, x[:1], router=router).train()
        models[f"{router}, static edges"] = net
        net = copy.deepcopy(net)
        open_all_(net)
        check_open(net, x, share=1.0)
        models[router] = net
    is_compiled = form == "compiled"
    if name.startswith("resnet50") and not is_compiled:
        models["timm seresnet50"] = timm.create_model("seresnet50").train()
    wrap = torch.compile if is_compiled else (lambda model: model)
    steps = {label: step(wrap(model), x) for label, model in models.items()}
    row: dict[str, Any] = {}
    if not is_compiled:
        steps["stage, recompute"] = recomputing(step(models["stage"], x))
        base = peak_bytes(step(static, x))
        row["peak memory"] = {
            label: round(peak_bytes(one) / base, 3) for label, one in steps.items()
        }
    timings = compare(step(wrap(static), x), steps, rounds=rounds, clock=clock)
    row["static seconds"] = round(timings[0].seconds, 4)
    row["time"] = {
        t.name: [round(t.ratio, 3), round(t.low, 3), round(t.high, 3), t.is_reliable]
        for t in timings[1:]
    }
    return row


def main(arguments: argparse.Namespace) -> None:
    if arguments.form == "plain":
        os.environ["DGGRAPH_KERNELS"] = "0"
    elif arguments.form == "kernels" and not kernels.load():
        raise SystemExit(kernels.status())
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    output: Path | None = arguments.output
    done = output.read_text().splitlines() if output and output.exists() else []
    known = [json.loads(line) for line in done]
    for case in CASES:
        key = {
            "case": case,
            "form": arguments.form,
            "clock": "CPU" if arguments.cpu_time else "wall",
            "threads": torch.get_num_threads(),
        }
        if arguments.only not in case or any(key.items() <= row.items() for row in known):
            continue
        row = json.dumps(key | measure(case, arguments.form, arguments.rounds, clock))
        print(row, flush=True)
        if output:
            with output.open("a") as stream:
                stream.write(row + "\n")


def table(file: Path) -> str:
    lines = [
        "| network | form | compared with static | time | peak memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in map(json.loads, file.read_text().splitlines()):
        for label, (ratio, low, high, is_reliable) in row["time"].items():
            cells = [row["case"], row["form"], label]
            cells.append(f"{ratio:.2f}{'' if is_reliable else '?'} ({low:.2f} to {high:.2f})")
            peak = row.get("peak memory", {}).get(label)
            cells.append("" if peak is None else f"{peak:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    dggraph.keep_freed_memory()  # for both sides
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--form", choices=("plain", "kernels", "compiled"))
    how.add_argument("--table", type=Path, help="print this .jsonl as a table, measure nothing")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, not wall time")
    parser.add_argument("--output", type=Path, help="append each row to this .jsonl")
    options = parser.parse_args()
    if options.table:
        print(table(options.table))
    else:
        main(options)
