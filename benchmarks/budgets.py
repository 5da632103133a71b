"""Are budgets met, and what do they cost? Short runs with the weight that adapts, and with 1.

    OMP_NUM_THREADS=1 python benchmarks/budgets.py run [--seeds 0 1 2 3 4]   goes on where it was
    python benchmarks/budgets.py table                        what docs/budgets.md says of them

Every run has 180 steps on 24 images of Fashion-MNIST, and is evaluated on 1,500 test images. The
network is trained statically first, by the same seed, where it is fine-tuned. A finished run is a
row of docs/benchmarks/budgets.jsonl; each takes about 20 seconds of CPU time on one thread.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.utils.data import Subset

from dggraph import Preprocess
from dggraph.data.sources import TrainingData, open_data
from dggraph.training import TrainConfig, read_config, train

ROWS = Path(__file__).parents[1] / "docs" / "benchmarks" / "budgets.jsonl"
COMMON: dict[str, Any] = {
    "model": "dggraph:resnet20_8", "num_classes": 10, "dataset": "budgets:fewer", "input_size": 28,
    "crop_padding": 2, "epochs": 1, "epoch_steps": 180, "batch_size": 24, "warmup_epochs": 0,
    "channels_last": True, "validation_batch_size": 250,
}  # fmt: skip
STATIC = {"router": "none", "lr": 0.1}
SETTINGS: dict[str, dict[str, Any]] = {
    "fine-tuned, SGD": {"lr": 0.02, "budget": 0.8},
    "from random weights, SGD": {"lr": 0.1, "budget": 0.8},
    "fine-tuned, AdamW, slow routers": {"lr": 1e-3, "opt": "adamw", "budget": 0.8},
}
WEIGHTS: dict[str, dict[str, Any]] = {"adapts": {}, "1": {"budget_weight": 1.0}}
Key = tuple[str, str, int]


def fewer(config: TrainConfig) -> TrainingData:
    """Fashion-MNIST with 1,500 test images."""
    preprocess = Preprocess(input_size=(3, 28, 28), mean=(0.286,) * 3, std=(0.353,) * 3)
    whole = config.model_copy(update={"dataset": "fashion_mnist"})
    data = open_data(whole.source, preprocess, config.augmentation)
    return replace(data, validation=Subset(data.validation, range(1500)))


def done() -> dict[Key, dict[str, Any]]:
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["setting"], row["weight"], row["seed"]): row for row in rows}


def execute(setting: str, weight: str, seed: int, scratch: Path) -> None:
    start = time.process_time()
    common = COMMON | {"output": scratch, "seed": seed}
    keys = common | SETTINGS[setting] | WEIGHTS[weight]
    row: dict[str, Any] = {"setting": setting, "weight": weight, "seed": seed}
    if "fine-tuned" in setting:
        static = train(read_config(None, common | STATIC | {"experiment": f"static{seed}"}))
        keys["checkpoint"] = static.folder / "backbone.safetensors"
    result = train(read_config(None, keys))
    assert result.evaluation is not None
    assert result.budget is not None
    found = result.evaluation.row()
    row |= {"accuracy": found["accuracy"], "kept": found["kept"], "is_met": result.budget.is_met}
    row |= {"num_paths": found["num_paths"], "seconds": round(time.process_time() - start)}
    print(json.dumps(row), flush=True)
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def table() -> str:
    lines = [
        "| run | weight | MACs ratio by seed | met | accuracy, % | mean |",
        "|---|---|---|---|---|---|",
    ]
    for setting in SETTINGS:
        for weight in WEIGHTS:
            rows = [row for key, row in sorted(done().items()) if key[:2] == (setting, weight)]
            if rows:
                kept = ", ".join(f"{row['kept']:.3f}" for row in rows)
                accuracies = [100 * row["accuracy"] for row in rows]
                met = f"{sum(row['is_met'] for row in rows)} of {len(rows)}"
                shown = ", ".join(f"{one:.1f}" for one in accuracies)
                lines.append(
                    f"| {setting} | {weight} | {kept} | {met} | {shown} | {fmean(accuracies):.1f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            for setting in SETTINGS:
                for weight in WEIGHTS:
                    if (setting, weight, seed) not in done():
                        execute(setting, weight, seed, Path(scratch))


if __name__ == "__main__":
    main()
