"""Fashion-MNIST by one recipe: static, complete with weights 1, learned static edges, and dynamic networks with both routers.

    python benchmarks/fashion_mnist.py list                 every run, and which are done
    python benchmarks/fashion_mnist.py run [--hours 1.5]    the next ones, one after the other; goes on wherever it was stopped

A finished run is a row of docs/benchmarks/fashion_mnist.jsonl. `swapped` says what each image's adjacency is worth: accuracy when every image
gets the mean adjacency of the test set, or another image's.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dggraph
from dggraph.runtime.network import DynamicNetwork, pinned_gates
from dggraph.training.config import TrainConfig, read_config
from dggraph.training.data import open_data
from dggraph.training.loop import train

RECIPE = Path(dggraph.__file__).parent / "recipes" / "fashion_mnist.toml"
ROWS = Path(__file__).parents[1] / "docs" / "benchmarks" / "fashion_mnist.jsonl"
SEEDS = range(4)


class Fixed(nn.Module):
    """Learned edges that are the same for every image: a router that does not look."""

    def __init__(self, num_channels: int, num_edges: int, channel_axis: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_edges))

    def forward(self, features: Tensor) -> Tensor:
        return self.bias.expand(len(features), -1)


class Ones(nn.Module):
    """Every edge at weight 1, whatever the router says."""

    def forward(self, logits_BE: Tensor) -> Tensor:
        return torch.ones_like(logits_BE) + 0 * logits_BE


dggraph.register_router("fixed", Fixed)
dggraph.register_gate("ones", lambda static: Ones())

VARIANTS: dict[str, dict[str, Any]] = {
    "static": {"router": "none", "budget": None},
    "node": {"router": "node", "budget": None},
    "fixed": {"router": "fixed", "budget": None},
    "stage": {"router": "stage", "budget": None},
    "ones": {"router": "fixed", "gate": "ones", "init": "scratch", "budget": None},
    "node, budget 0.9": {"router": "node", "budget": 0.9},
    "node, budget 0.8": {"router": "node", "budget": 0.8},
    "node, budget 0.7": {"router": "node", "budget": 0.7},
    "static, shorter": {"router": "none", "budget": None, "model": "dggraph:resnet14_8"},
}


@dataclass(frozen=True)
class Run:
    """One row to be."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}".replace(", ", "-").replace(" ", "_")

    def config(self, output: Path) -> TrainConfig:
        return read_config(RECIPE, {"seed": self.seed, "output": output, "experiment": self.name}).model_copy(
            update=VARIANTS[self.variant]
        )


def runs() -> list[Run]:
    """In the order in which they are wanted: a whole seed before the next."""
    return [Run(variant, seed) for seed in SEEDS for variant in VARIANTS if seed < 3 or "budget" not in variant]


def done() -> dict[tuple[str, int], dict[str, Any]]:
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {(row["variant"], row["seed"]): row for row in map(json.loads, lines)}


def execute(run: Run, output: Path) -> None:
    config = run.config(output)
    start = time.perf_counter()
    result = train(config, lambda row: print(run.name, row, flush=True) if "epoch" in row else None)
    if not result.is_finished:
        raise SystemExit("stopped; the same command goes on")
    timing = [json.loads(line) for line in (result.folder / "timing.jsonl").read_text().splitlines()]
    last = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()][-1]
    row: dict[str, Any] = {"variant": run.variant, "seed": run.seed, "model": config.model, "epochs": config.epochs}
    row |= {"accuracy": last["accuracy"], "kept": last.get("kept"), "num_paths": last.get("num_paths")}
    row |= {"path_entropy_bits": last.get("path_entropy_bits"), "seconds": round(sum(part["seconds"] for part in timing))}
    if run.variant in ("node", "stage"):
        row["swapped"] = swap(dggraph.load(result.folder / "archive"), config)
    print(json.dumps(row), round(time.perf_counter() - start), "s", flush=True)
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def swap(net: DynamicNetwork, config: TrainConfig) -> dict[str, float]:
    """Accuracy with the mean adjacency for all, and with each image's replaced by another's of the test set."""
    assert net.preprocess is not None
    net = net.eval()
    validation = open_data(config, net.preprocess).validation
    samples = [validation[index] for index in range(len(validation))]  # type: ignore[arg-type]
    images, labels = torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
    with torch.no_grad():
        gates = [net(part, return_gates=True)[1].weights for part in images.split(500)]
        weights = {stage: torch.cat([one[stage] for one in gates]) for stage in gates[0]}
        net.set_threshold(0)  # settled weights are 0 where an edge is closed, and a mean is taken as it is
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        right = {"mean": 0, "other": 0}
        for name, pinned in (
            ("mean", {k: w.mean(0, keepdim=True).expand_as(w) for k, w in weights.items()}),
            ("other", {k: w[order] for k, w in weights.items()}),
        ):
            for place in torch.arange(len(images)).split(500):
                with pinned_gates(net, {stage: weight[place] for stage, weight in pinned.items()}):
                    right[name] += int((net(images[place]).argmax(1) == labels[place]).sum())
    return {name: count / len(images) for name, count in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["list", "run"])
    parser.add_argument("--hours", type=float, default=1e9, help="Start no run after so many.")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    start, finished = time.perf_counter(), done()
    for run in runs():
        if arguments.command == "list":
            print("done" if (run.variant, run.seed) in finished else "    ", run.variant, run.seed)
        elif (run.variant, run.seed) not in finished and time.perf_counter() - start < 3600 * arguments.hours:
            execute(run, arguments.output)


if __name__ == "__main__":
    main()
