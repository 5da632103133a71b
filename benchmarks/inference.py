"""Inference over the static backbone: a single image and a batch, plain and prepared.

    python benchmarks/inference.py [--rounds 15] [--batch 1 16] [--threads 1] [--only NAME]
        [--output FILE.jsonl]
    python benchmarks/inference.py --table FILE.jsonl

Rows of a network that was never trained (`fresh`), and of random paths with about .5, .75 and 1.0
of all MACs (`dggraph.evaluation.timing.sample_paths`): every edge between the nodes kept is
open, at a weight of its own. Routers always run. They give each image of a batch its own path:
their weights are solved for the images, which differ in brightness and contrast.

Each row has medians and quartiles of paired ratios, in CPU time. On a single image each network
runs eight times before it is timed, so that its weights are in the caches as if it ran alone:

- `modules`: over the static backbone, called module by module
- `inlined`: over the static backbone, run by the same executor and inlined in the same way
- `prepared`: the result of `optimize_for_inference` over the static network by the same steps,
  called module by module
- `prepared, inlined`: the same, over the static network inlined
- `dense`: masked execution over modules

C++ kernels are used where they are built; DGGRAPH_KERNELS=0 turns them off.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import dggraph
from dggraph.compiler.lowered import routing_of
from dggraph.evaluation.static_twin import static_twin
from dggraph.evaluation.timing import interleaved, sample_paths
from dggraph.models.small_resnet import SmallResNet
from dggraph.network.gate_contexts import decided_edges, pinned_gates
from dggraph.ops import kernels
from dggraph.ops.liveness import live_vertices

CASES: list[tuple[str, Callable[[], nn.Module], int, int, str]] = [
    ("mobilenet_v2 64 px", torchvision.models.mobilenet_v2, 64, 1, "stage"),
    ("mobilenet_v2 64 px", torchvision.models.mobilenet_v2, 64, 1, "node"),
    ("mobilenet_v2 160 px", torchvision.models.mobilenet_v2, 160, 1, "stage"),
    ("mobilenet_v2 224 px", torchvision.models.mobilenet_v2, 224, 1, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 1, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 1, "node"),
    ("mobilenet_v2 64 px", torchvision.models.mobilenet_v2, 64, 16, "stage"),
    ("mobilenet_v2 160 px", torchvision.models.mobilenet_v2, 160, 16, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 16, "stage"),
    ("cifar resnet56", lambda: SmallResNet(56, 16), 32, 16, "stage"),
    ("resnet50 128 px", torchvision.models.resnet50, 128, 16, "node"),
    ("cifar resnet56", lambda: SmallResNet(56, 16), 32, 16, "node"),
]
PAIRS = {
    "modules": ("net", "static"),
    "inlined": ("net", "inlined static"),
    "prepared": ("prepared", "prepared static"),
    "prepared, inlined": ("prepared", "prepared, inlined static"),
    "dense": ("dense", "static"),
}


def impose_(net: Any, x: Tensor, weights: dict[str, Tensor]) -> None:
    """Let the routers of `net` give each image of `x` its `weights`, (B, E) per stage. In place.

    Their weights solve a linear system on the features that they read. A single image leaves them
    free: they are tiny but not 0, so that no decision is constant.
    """
    generator = torch.Generator().manual_seed(0)
    read = features_read(net, x, weights)
    for stage, weights_BE in weights.items():
        edges = decided_edges(net, stage)
        live_BV = live_vertices(weights_BE != 0, net.macs_table.stages[stage].topology)
        for vertex, router, gate in routing_of(net.lowered, stage).deciders():
            is_live_B = live_BV[:, vertex]
            if not is_live_B.any():
                continue
            pooled_RC = read[router][is_live_B].double()
            wanted_RE = weights_BE[is_live_B][:, edges[vertex]].double()
            logits_RE = torch.atanh((wanted_RE - gate.anchor_E).clamp(-0.999, 0.999))
            around_C, level_E = pooled_RC.mean(0), logits_RE.mean(0)
            solved_CE = torch.linalg.lstsq(
                pooled_RC - around_C, logits_RE - level_E, driver="gelsd"
            ).solution
            noise_EC = 1e-9 * torch.randn(router.weight.shape, generator=generator)
            with torch.no_grad():
                router.weight.copy_(solved_CE.T + noise_EC)
                router.bias.copy_(level_E - around_C @ solved_CE)


def features_read(net: Any, x: Tensor, weights: dict[str, Tensor]) -> dict[nn.Module, Tensor]:
    """What each router reads where images of `x` take the paths of `weights`, pooled to (B, C)."""
    read: dict[nn.Module, Tensor] = {}

    def keep(router: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> None:
        read[router] = inputs[0].mean((2, 3))

    net.executor = "dense"
    with pinned_gates(net, weights), torch.inference_mode(), ExitStack() as stack:
        for stage in weights:
            for _, router, _ in routing_of(net.lowered, stage).deciders():
                stack.callback(router.register_forward_hook(keep).remove)
        net(x)
    net.executor = "auto"
    return {router: pooled.clone() for router, pooled in read.items()}


def check_paths(net: Any, x: Tensor, weights: dict[str, Tensor]) -> None:
    """Stop unless `net` opens the edges that `weights` say."""
    with torch.inference_mode():
        _, gates = net(x, return_gates=True)
    for stage, weights_BE in weights.items():
        assert torch.equal(gates.open[stage], weights_BE != 0), f"{stage}: other paths than wanted"


def nets_of(net: Any, backbone: nn.Module) -> dict[str, Any]:
    """The network and the static one in all forms."""
    inlined = static_twin(net, backbone)
    return {
        "static": backbone,
        "inlined static": inlined,
        "net": net,
        "prepared, inlined static": dggraph.optimize_for_inference(inlined),
        "prepared": dggraph.optimize_for_inference(net),
    }


def runs_of(nets: dict[str, Any], x: Tensor) -> dict[str, Callable[[], object]]:
    last = x.to(memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {
        name: lambda model=model, x=last if "prepared" in name else x: model(x)
        for name, model in nets.items()
    }
    runs["prepared static"] = lambda: nets["prepared, inlined static"].lowered(last)

    def dense() -> object:
        nets["net"].executor = "dense"
        output = nets["net"](x)
        nets["net"].executor = "auto"
        return output

    return runs | {"dense": dense}


def measure(case: tuple[Any, ...], kept: float | None, rounds: int) -> dict[str, Any]:
    name, build, side, batch, router = case
    torch.manual_seed(0)
    backbone = build().eval()
    x = torch.randn(batch, 3, side, side) * (0.5 + torch.rand(batch, 3, 1, 1))
    x += torch.randn(batch, 3, 1, 1)
    net = dggraph.convert(backbone, x[:1], router=router).eval()
    realised, weights = 1.0, dict[str, Tensor]()
    if kept is not None:
        weights, realised = sample_paths(net, kept, batch)
        impose_(net, x, weights)
    nets = nets_of(net, backbone)
    for one in (nets["net"], nets["prepared"]):
        check_paths(one, x, weights)
    with torch.inference_mode():
        seconds = interleaved(
            runs_of(nets, x),
            rounds=rounds,
            clock=time.process_time,
            burst=8 if batch == 1 else 0,
        )
    row: dict[str, Any] = {
        "case": name,
        "batch": batch,
        "router": router,
        "kernels": kernels.load(),
        "threads": torch.get_num_threads(),
        "paths": "fresh" if kept is None else "random",
        "kept": round(realised, 3),
        "static ms": round(1e3 * statistics.median(seconds["static"]), 2),
    }
    for label, (one, other) in PAIRS.items():
        ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        row[label] = [round(value, 3) for value in (median, low, high)]
    return row


def table(path: Path) -> str:
    """Return the rows of a file as Markdown; `?` marks quartiles more than 10 % apart."""
    lines = [
        f"| network | batch | router | MACs ratio | {' | '.join(PAIRS)} |",
        f"| --- | --- | --- | --- |{' --- |' * len(PAIRS)}",
    ]
    for text in path.read_text().splitlines():
        row = json.loads(text)
        kept = "never trained" if row["paths"] == "fresh" else f"{row['kept']:.2f}"
        cells = [row["case"], str(row["batch"]), row["router"], kept]
        for label in PAIRS:
            median, low, high = row[label]
            cells.append(f"{median:.2f}{'?' if high - low > 0.1 * median else ''}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(rounds: int, batches: set[int], only: str, output: Path | None) -> None:
    for case in CASES:
        if case[3] not in batches or only not in case[0]:
            continue
        for kept in (None, 0.5, 0.75, 1.0):
            row = measure(case, kept, rounds)
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
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path, help="print the rows of this file, measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        raise SystemExit
    torch.set_num_threads(arguments.threads)
    main(arguments.rounds, set(arguments.batch), arguments.only, arguments.output)
