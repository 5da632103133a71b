"""A fixed smaller network, a dynamic one and the whole one: accuracy and time on MobileNetV2.

    OMP_NUM_THREADS=1 python benchmarks/thin.py run CHECKPOINT OUTPUT [--seeds 0 1 2]
    python benchmarks/thin.py table                  what docs/export.md says of them

CHECKPOINT is torchvision's `mobilenet_v2-b0353104.pth`. For every seed the whole network is first
fine-tuned on Fashion-MNIST at 64 pixels. From its weights then start, with one recipe and as many
steps each: the whole network again, the one that `dggraph thin` makes, and a dynamic one whose
budget is what the thinned one keeps. Accuracy is that of the images that thinning did not choose
on. Rows go to docs/benchmarks/thin.jsonl, and OUTPUT keeps the runs: a killed call goes on where it
was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from dggraph import Preprocess
from dggraph.data.sources import TrainingData, open_data
from dggraph.evaluation.accuracy import evaluate
from dggraph.evaluation.timing import CLOCKS, interleaved
from dggraph.training import TrainConfig, read_config, train

ROWS = Path(__file__).parents[1] / "docs" / "benchmarks" / "thin.jsonl"
BUDGETS = (0.8,)
FIRST, THEN, ROUNDS, IMAGES = 250, 200, 9, 3000
RECIPE = """\
model = "mobilenet_v2"
dataset = "thin:fewer"
num_classes = 10
input_size = 64
mean = [0.286, 0.286, 0.286]
std = [0.353, 0.353, 0.353]
crop_pct = 1.0
scale = [0.6, 1.0]
epochs = 1
batch_size = 24
warmup_epochs = 0
channels_last = true
"""


def trained(folder: Path, **keys: Any) -> Any:
    """The result of a run of the recipe, trained where it was not."""
    recipe = folder.parent / "recipe.toml"
    recipe.write_text(RECIPE)
    where = {"output": folder.parent, "experiment": folder.name}
    return train(read_config(recipe, where | keys))


def thinned(full: Path, folder: Path, budget: float, seed: int) -> tuple[dict[str, Any], Any]:
    """What `dggraph thin` says of a run, and the network that it fine-tuned."""
    recipe = folder.parent / "then.toml"
    recipe.write_text(f"{RECIPE}lr = 0.01\nepoch_steps = {THEN}\nseed = {seed}\n")
    words = f"--budget {budget} --dataset thin:fewer --epochs 1".split()
    command = [sys.executable, "-m", "dggraph", "thin", full, *words, "--recipe", recipe]
    if not (folder / "fine-tuned" / "backbone.safetensors").exists():
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}  # for `thin:fewer`
        subprocess.run([*command, "-o", folder], check=True, env=os.environ | path)
    facts = json.loads((folder / "thin.json").read_text())
    run = json.loads((folder / "fine-tuned" / "config.json").read_text())
    return facts, train(read_config(None, run)).model


def run_seed(seed: int, checkpoint: Path, output: Path) -> list[dict[str, Any]]:
    place = output / str(seed)
    place.mkdir(parents=True, exist_ok=True)
    first = {"checkpoint": checkpoint, "router": "none", "lr": 0.02, "epoch_steps": FIRST}
    full = trained(place / "full", seed=seed, **first).folder
    then = {"checkpoint": full / "backbone.safetensors", "lr": 0.01, "epoch_steps": THEN}
    models = {"whole": trained(place / "whole", seed=seed, router="none", **then).model}
    facts: dict[str, dict[str, Any]] = {"whole": {"kept": 1.0}}
    for budget in BUDGETS:
        found, model = thinned(full, place / f"thin{budget}", budget, seed)
        untuned = {"accuracy before tuning": found["accuracy"]["thinned"]}
        facts[f"thin {budget}"] = {key: found[key] for key in ("kept", "removed")} | untuned
        models[f"thin {budget}"] = model
        keys = {"router": "stage", "budget": round(found["kept"], 3)}
        models[f"dynamic {budget}"] = trained(
            place / f"dynamic{budget}", seed=seed, **keys, **then
        ).model
    images = judged(place / "recipe.toml")
    return [
        {
            "seed": seed,
            "method": name,
            **facts.get(name, {}),
            **evaluate(model.eval(), images).row(),
            **times(models, name, images),
        }
        for name, model in models.items()
    ]


def fewer(config: TrainConfig) -> TrainingData:
    """Fashion-MNIST with 3,000 test images."""
    preprocess = Preprocess(input_size=(3, 64, 64), mean=(0.286,) * 3, std=(0.353,) * 3)
    whole = config.model_copy(update={"dataset": "fashion_mnist"})
    data = open_data(whole.source, preprocess, config.augmentation)
    return replace(data, validation=Subset(data.validation, range(IMAGES)))


def judged(recipe: Path) -> Subset[Any]:
    """The validation images at odd places, on which `dggraph thin` did not choose."""
    return Subset(fewer(read_config(recipe, {})).validation, range(1, IMAGES, 2))


def times(models: dict[str, Any], name: str, images: Subset[Any]) -> dict[str, float]:
    """The time over that of the whole network, one image and sixteen at a time."""
    x = torch.stack([images[place][0] for place in range(0, len(images), len(images) // 32)])
    x = x.contiguous(memory_format=torch.channels_last)
    found = {}
    with torch.no_grad():
        for size in (1, 16):
            batches = x[:32].split(size)
            runs = {
                one: lambda model=models[one], batches=batches: [model(one) for one in batches]
                for one in dict.fromkeys(["whole", name])
            }
            seconds = interleaved(runs, rounds=ROUNDS, clock=CLOCKS["cpu"])
            ratios = [b / a for a, b in zip(seconds["whole"], seconds[name], strict=True)]
            found[f"time, batch {size}"] = statistics.median(ratios)
    return found


def table() -> str:
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    whole = {row["seed"]: row["accuracy"] for row in rows if row["method"] == "whole"}
    lines = [
        "| network | MACs | accuracy, % | minus whole, by seed | time, batch 1 | batch 16 |",
        "|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        mean = {
            key: statistics.fmean(row[key] for row in own)
            for key in ("kept", "accuracy", "time, batch 1", "time, batch 16")
        }
        minus = ", ".join(f"{100 * (row['accuracy'] - whole[row['seed']]):+.2f}" for row in own)
        lines.append(
            f"| {method} | {mean['kept']:.3f} | {100 * mean['accuracy']:.2f} | {minus} |"
            f" {mean['time, batch 1']:.2f} | {mean['time, batch 16']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("checkpoint", type=Path)
    run.add_argument("output", type=Path)
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    torch.set_num_threads(1)
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    done = {json.loads(line)["seed"] for line in lines}
    for seed in arguments.seeds:
        if seed not in done:
            rows = run_seed(seed, arguments.checkpoint, arguments.output)
            with ROWS.open("a") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
