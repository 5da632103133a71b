"""What the defaults of training do unasked: those of before (edges close at 0.5, routers learn at
the rate of the network) against those of now, and the static network, by short runs of one recipe.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py [--hours 1]

A finished run is a row of docs/benchmarks/defaults.jsonl; the same command goes on with the next.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from dggraph.training import read_config, train

ROWS = Path(__file__).parents[1] / "docs" / "benchmarks" / "defaults.jsonl"
RATES = {"dggraph:resnet20_8": 0.3, "families:mobilenet": 0.1}
SEEDS = (100, 101)
VARIANTS = ("static", "before", "now")


def keys(variant: str, model: str) -> dict[str, Any]:
    """The keys that differ from the recipe fashion_mnist, 3 epochs of 200 steps each."""
    unset = {"budget": None, "lr": RATES[model], "threshold": None, "router_lr": None}
    before = {"threshold": 0.5, "router_lr": RATES[model]}
    return unset | {"static": {"router": "none"}, "before": before, "now": {}}[variant]


def execute(variant: str, model: str, seed: int, output: Path) -> dict[str, Any]:
    name = f"{variant}-{model.split(':')[-1]}-{seed}"
    given = {"seed": seed, "output": output, "experiment": name, "model": model}
    config = read_config(Path("fashion_mnist"), given | {"epochs": 3, "epoch_steps": 200})
    config = config.model_copy(update=keys(variant, model))
    result = train(config)
    if not result.is_finished:
        raise SystemExit("stopped; the same command goes on")
    last = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
    row = {"variant": variant, "model": model, "seed": seed, "accuracy": last["accuracy"]}
    return row | {"kept": last.get("kept"), "num_paths": last.get("num_paths")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=1e9, help="Start no run after so many.")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows = map(json.loads, ROWS.read_text().splitlines() if ROWS.exists() else [])
    done = {(row["variant"], row["model"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for model in RATES:
            for variant in VARIANTS:
                if (variant, model, seed) in done:
                    continue
                if time.perf_counter() - start > 3600 * arguments.hours:
                    return
                row = execute(variant, model, seed, arguments.output)
                print(json.dumps(row), flush=True)
                with ROWS.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
