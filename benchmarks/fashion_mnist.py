"""Fashion-MNIST by one recipe: static, complete with weights 1, learned static edges, and dynamic
networks with both routers.

    python benchmarks/fashion_mnist.py list                 every run, and which are done
    python benchmarks/fashion_mnist.py run [--hours 1.5]    the next ones, one after the other; goes
                                                            on wherever it was stopped
    python benchmarks/fashion_mnist.py table                what docs/benchmarks/fashion-mnist.md
                                                            says of them

A finished run is a row of docs/benchmarks/fashion_mnist.jsonl. `swapped` says what each image's
adjacency is worth: accuracy when every image gets the mean adjacency of the test set, or another
image's. `health` counts edges that are open for all images or for none, and blocks that none
reaches.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

import dggraph
from dggraph.data.sources import open_data
from dggraph.evaluation.gate_diagnostics import check_gates
from dggraph.models.registry import load_model
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.training.config import TrainConfig, read_config
from dggraph.training.loop import train

RECIPE = Path(dggraph.__file__).parent / "recipes" / "fashion_mnist.toml"
ROWS = Path(__file__).parents[1] / "docs" / "benchmarks" / "fashion_mnist.jsonl"
SEEDS = range(4)


class Ones(nn.Module):
    """Every edge at weight 1, whatever the router says."""

    def forward(self, logits_BE: Tensor) -> Tensor:
        return torch.ones_like(logits_BE) + 0 * logits_BE


dggraph.register_gate("ones", lambda static: Ones())

VARIANTS: dict[str, dict[str, Any]] = {
    "static": {"router": "none", "budget": None},
    "node": {"router": "node", "budget": None},
    "fixed": {"router": "constant", "budget": None},
    "stage": {"router": "stage", "budget": None},
    "ones": {"router": "constant", "gate": "ones", "init": "scratch", "budget": None},
    "node, budget 0.9": {"router": "node", "budget": 0.9},
    "node, budget 0.8": {"router": "node", "budget": 0.8},
    "node, budget 0.7": {"router": "node", "budget": 0.7},
    "static, shorter": {"router": "none", "budget": None, "model": "dggraph:resnet14_8"},
    "node, slow routers": {"router": "node", "budget": None, "router_lr": 0.01},
    "node, slow routers, budget 0.8": {"router": "node", "budget": 0.8, "router_lr": 0.01},
}
SECOND = {
    f"mobilenet, {variant}": VARIANTS[variant] | {"model": "families:mobilenet", "lr": 0.1}
    for variant in ("static", "node", "node, budget 0.8")
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
        return read_config(
            RECIPE, {"seed": self.seed, "output": output, "experiment": self.name}
        ).model_copy(update=(VARIANTS | SECOND)[self.variant])


def runs() -> list[Run]:
    """In the order in which they are wanted: a whole seed before the next."""
    first = [
        Run(variant, seed)
        for seed in SEEDS
        for variant in VARIANTS
        if seed < 3 or "budget" not in variant
    ]
    second = [Run(variant, seed) for variant in SECOND for seed in SEEDS[:3]]
    return (
        [run for run in first if "slow" not in run.variant]
        + second
        + [run for run in first if "slow" in run.variant]
    )


def done() -> dict[tuple[str, int], dict[str, Any]]:
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {(row["variant"], row["seed"]): row for row in map(json.loads, lines)}


def execute(run: Run, output: Path) -> None:
    config = run.config(output)
    start = time.perf_counter()
    result = train(config, lambda row: print(run.name, row, flush=True) if "epoch" in row else None)
    if not result.is_finished:
        raise SystemExit("stopped; the same command goes on")
    timing = [
        json.loads(line) for line in (result.folder / "timing.jsonl").read_text().splitlines()
    ]
    last = [
        json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()
    ][-1]
    row: dict[str, Any] = {
        "variant": run.variant,
        "seed": run.seed,
        "model": config.model,
        "epochs": config.epochs,
    }
    row |= {
        "accuracy": last["accuracy"],
        "kept": last.get("kept"),
        "num_paths": last.get("num_paths"),
    }
    row |= {
        "path_entropy_bits": last.get("path_entropy_bits"),
        "seconds": round(sum(part["seconds"] for part in timing)),
    }
    if config.router in ("node", "stage"):
        static = load_model(
            config.model, num_classes=config.num_classes, input_size=config.input_size
        ).model
        row |= look(dggraph.load(result.folder / "archive", model=static), config)
    print(json.dumps(row), round(time.perf_counter() - start), "s", flush=True)
    ROWS.parent.mkdir(exist_ok=True)
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def look(net: DynamicNetwork, config: TrainConfig) -> dict[str, Any]:
    """Accuracy on the test set with the mean adjacency for all, and with another image's; and the
    health of the gates.
    """
    assert net.preprocess is not None
    net = net.eval()
    validation = open_data(config.source, net.preprocess, config.augmentation).validation
    samples = [validation[index] for index in range(len(validation))]  # type: ignore[arg-type]
    images, labels = (
        torch.stack([image for image, _ in samples]),
        torch.tensor([label for _, label in samples]),
    )
    report = check_gates(net, images.split(500))
    health = {
        "always_open": len(report.always_open),
        "never_open": len(report.always_closed),
        "edges": len(report.open_fractions),
    }
    health |= {"never_reached": len(report.never_live), "blocks": len(report.live_fractions)}
    with torch.no_grad():
        gates = [net(part, return_gates=True)[1].weights for part in images.split(500)]
        weights = {stage: torch.cat([one[stage] for one in gates]) for stage in gates[0]}
        net.set_threshold(
            0
        )  # settled weights are 0 where an edge is closed, and a mean is taken as it is
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        right = {"mean": 0, "other": 0}
        for name, pinned in (
            ("mean", {k: w.mean(0, keepdim=True).expand_as(w) for k, w in weights.items()}),
            ("other", {k: w[order] for k, w in weights.items()}),
        ):
            for place in torch.arange(len(images)).split(500):
                with pinned_gates(net, {stage: weight[place] for stage, weight in pinned.items()}):
                    right[name] += int((net(images[place]).argmax(1) == labels[place]).sum())
    return {
        "swapped": {name: count / len(images) for name, count in right.items()},
        "health": health,
    }


def tables(variants: Iterable[str], static: str) -> str:
    """Markdown: accuracy as mean over seeds, lowest and highest, and difference from the static
    network of the same seed with its 95 % interval; then what gates do.
    """
    rows = done()
    accuracies = [
        "| variant | seeds | accuracy, % | minus static | MACs ratio |",
        "|---|---|---|---|---|",
    ]
    gates = [
        (
            "| variant | paths | entropy, bits | mean adjacency, % | another's, % | always, never"
            " open | unreached |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for variant in variants:
        found = {seed: row for (name, seed), row in rows.items() if name == variant}
        if not found:
            continue
        name, accuracy = (
            variant.removeprefix("mobilenet, "),
            [100 * row["accuracy"] for row in found.values()],
        )
        paired = [
            100 * (row["accuracy"] - rows[static, seed]["accuracy"])
            for seed, row in found.items()
            if (static, seed) in rows
        ]
        spread = f"{fmean(accuracy):.2f} ({min(accuracy):.2f} to {max(accuracy):.2f})"
        difference = "" if variant == static else interval(paired)
        accuracies.append(
            f"| {name} | {len(found)} | {spread} | {difference} |"
            f" {mean_of(found.values(), 'kept', '.3f')} |"
        )
        looks = [row["swapped"] for row in found.values() if "swapped" in row]
        healths = [row["health"] for row in found.values() if "health" in row]
        if looks:
            cells = [
                mean_of(found.values(), "num_paths", ".0f"),
                mean_of(found.values(), "path_entropy_bits", ".1f"),
                *(mean_of(looks, key, ".2f", 100) for key in ("mean", "other")),
                ", ".join(mean_of(healths, key, ".0f") for key in ("always_open", "never_open")),
                (
                    f"{mean_of(healths, 'never_reached', '.1f')} of"
                    f" {mean_of(healths, 'blocks', '.0f')}"
                ),
            ]
            gates.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*accuracies, "", *gates])


def mean_of(rows: Iterable[dict[str, Any]], key: str, form: str, scale: float = 1) -> str:
    """Empty where no row has it."""
    values = [scale * row[key] for row in rows if row.get(key) is not None]
    return format(fmean(values), form) if values else ""


def interval(differences: list[float]) -> str:
    """Mean and half of its 95 % interval, by Student's t."""
    if len(differences) < 2:
        return f"{fmean(differences):+.2f}" if differences else ""
    half = (
        {2: 12.706, 3: 4.303, 4: 3.182}[len(differences)]
        * stdev(differences)
        / len(differences) ** 0.5
    )
    return f"{fmean(differences):+.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["list", "run", "table"])
    parser.add_argument("--hours", type=float, default=1e9, help="Start no run after so many.")
    parser.add_argument("--variant", help="This one only, so that two queues can share the work.")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(tables(VARIANTS, "static"), tables(SECOND, "mobilenet, static"), sep="\n\n\n")
        return
    start, finished = time.perf_counter(), done()
    for run in runs():
        if arguments.variant not in (None, run.variant):
            continue
        if arguments.command == "list":
            print("done" if (run.variant, run.seed) in finished else "    ", run.variant, run.seed)
        elif (
            run.variant,
            run.seed,
        ) not in finished and time.perf_counter() - start < 3600 * arguments.hours:
            execute(run, arguments.output)


if __name__ == "__main__":
    main()
