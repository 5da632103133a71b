"""Images a second of `dggraph train` over a bare PyTorch loop, on the same network, data and
augmentation; one after the other, in turn.

    python benchmarks/loop.py [--rounds 5]

The bare loop is what anybody writes: torch's DataLoader with shuffle=True, forward, loss, backward,
SGD, no checks, no metrics, no seeds a sample. Of `dggraph train` the seconds of an epoch count, as
its timing.jsonl has them: steps with all that happens between them, without evaluation and
checkpoints.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

import dggraph
from dggraph.data.sources import TrainingData, open_data
from dggraph.models.registry import load_model
from dggraph.network.network import DynamicNetwork
from dggraph.training.config import TrainConfig, configured, read_config
from dggraph.training.loop import train
from dggraph.training.optimisers import param_groups
from dggraph.training.preparing import prepare

RECIPE = Path(dggraph.__file__).parent / "recipes" / "fashion_mnist.toml"
VARIANTS: dict[str, dict[str, Any]] = {
    "static": {"router": "none", "budget": None},
    "node routers": {"budget": None},
    "node routers, budget": {},
}
NUM_IMAGES = 6400


def subset(config: TrainConfig) -> TrainingData:
    """The first images of Fashion-MNIST, for `--dataset loop:subset`."""
    loaded = load_model(config.model, num_classes=config.num_classes, input_size=config.input_size)
    assert loaded.preprocess is not None
    data = open_data(
        replace(config.source, dataset="fashion_mnist"),
        configured(loaded.preprocess, config),
        config.augmentation,
    )
    return TrainingData(
        Subset(data.train, range(NUM_IMAGES)), Subset(data.validation, range(10)), data.classes
    )


def ours(config: TrainConfig, folder: Path, number: int) -> float:
    result = train(config.model_copy(update={"output": folder, "experiment": str(number)}))
    (row,) = [
        json.loads(line) for line in (result.folder / "timing.jsonl").read_text().splitlines()
    ]
    return float(row["images_per_second"])


def bare(config: TrainConfig) -> float:
    prepared = prepare(config)
    model = prepared.model
    optimiser = torch.optim.SGD(
        param_groups(model, config.weight_decay), lr=0.01, momentum=config.momentum
    )
    loader: Any = DataLoader(
        prepared.task.train, batch_size=config.batch_size, shuffle=True, drop_last=True
    )
    start = time.perf_counter()
    for images, labels in loader:
        if isinstance(model, DynamicNetwork) and config.budget is not None:
            logits, gates = model(images, return_gates=True)
            loss = (
                nn.functional.cross_entropy(logits, labels)
                + dggraph.losses.budget(gates, config.budget).float()
            )
        else:
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return len(loader) * config.batch_size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, keys in VARIANTS.items():
        config = read_config(RECIPE, {}).model_copy(
            update={"epochs": 1, "dataset": "loop:subset", **keys}
        )
        ratios, speeds = [], []
        with tempfile.TemporaryDirectory() as folder:
            for number in range(-1, arguments.rounds):  # the first round warms up
                pair = ours(config, Path(folder), number), bare(config)
                if number >= 0:
                    ratios.append(pair[0] / pair[1])
                    speeds.append(pair[0])
        row = {
            "variant": name,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
            "images_per_second": round(statistics.median(speeds)),
        }
        print(
            json.dumps(
                row
                | {
                    "over_bare_loop": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
