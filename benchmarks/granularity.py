"""What finer weights cost: each granularity with every edge open, over the static backbone.

    OMP_NUM_THREADS=1 python benchmarks/granularity.py [--rounds 7] [--only NAME]

CPU time of one thread, in rounds that take turns; a ratio is the median over rounds. A training
step is forward, cross entropy, backward and SGD on a batch of 8; routers learn too. Inference is
timed with single images and a batch of 16. Routers give every edge .05 above its weight in the
backbone, so all are open. Rows are written to docs/tables/granularity.jsonl as they come, and those
that are there are not measured again; the page beside it is made from them.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dggraph
from dggraph.evaluation.timing import compare
from dggraph.models.registry import load_model

MODELS = ("mobilenet_v2", "regnet_y_400mf", "resnet50", "resnext50_32x4d")
GRANULARITIES: tuple[int | str, ...] = ("edge", 8, "channel", "pixel")
SIDE, BATCH, CLASSES, LIFT = 128, 8, 10, 0.05
ROWS = Path(__file__).resolve().parents[1] / "docs" / "tables" / "granularity.jsonl"


def opened(model: nn.Module, x: torch.Tensor, granularity: int | str) -> dggraph.DynamicNetwork:
    """Convert a copy of `model`, and open every edge by the biases of its routers."""
    net = dggraph.convert(model, x[:1], threshold=0.0, granularity=granularity)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".router_" in name and name.endswith(".bias") and not name.endswith("hidden.bias"):
                parameter.fill_(LIFT).atanh_()
        _, gates = net.eval()(x[:2], return_gates=True)
    if not torch.cat(list(gates.open.values()), 1).all():
        raise SystemExit(f"granularity={granularity}: edges are closed, contrary to the page.")
    return net


def step(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """Return a function that takes one training step."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(x)) % CLASSES

    def once() -> None:
        model.train()
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimiser.step()

    return once


def inference(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """Return a function that runs `model` without gradients."""

    @torch.no_grad()
    def once() -> None:
        model.eval()(x)

    return once


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Return the row of one network."""
    torch.manual_seed(0)
    static = load_model(model, num_classes=CLASSES).model
    x = torch.randn(BATCH, 3, SIDE, SIDE)
    nets = {str(kind): opened(static, x, kind) for kind in GRANULARITIES}
    size = sum(one.numel() for one in static.parameters())
    work = {
        "training": (step, x),
        "batch 1": (inference, x[:1]),
        "batch 16": (inference, torch.cat([x, x.flip(3)])),
    }
    row: dict[str, Any] = {"model": model, "rounds": rounds}
    row["parameters"] = {
        kind: sum(one.numel() for one in net.parameters()) / size for kind, net in nets.items()
    }
    for name, (make, images) in work.items():
        timings = compare(
            make(static, images),
            {kind: make(net, images) for kind, net in nets.items()},
            rounds=rounds,
            clock=time.process_time,
        )
        row[name] = {one.name: [one.ratio, one.low, one.high] for one in timings[1:]}
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a page."""
    lines = [
        "# The cost of finer weights",
        "",
        f"CPU time of one thread over the static backbone's: {SIDE} x {SIDE} pixels, every edge"
        f" open, and therefore no block skipped. A training step has a batch of {BATCH}. Medians"
        " over rounds that take turns, with quartiles in brackets.",
        "",
        "<!-- not run: takes half an hour -->",
        "",
        "```bash",
        "OMP_NUM_THREADS=1 python benchmarks/granularity.py",
        "```",
        "",
        "| Network | Granularity | Parameters | Training step | Batch of 1 | Batch of 16 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for kind in map(str, GRANULARITIES):
            cells = [row["model"], f"`{kind}`", f"{row['parameters'][kind]:.3f}"]
            for name in ("training", "batch 1", "batch 16"):
                ratio, low, high = row[name][kind]
                cells.append(f"{ratio:.2f} ({low:.2f} to {high:.2f})")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the rows that are missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="networks whose names contain this")
    arguments = parser.parse_args()
    dggraph.keep_freed_memory()  # for both sides
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for model in MODELS:
        if arguments.only in model and all(row["model"] != model for row in rows):
            rows.append(measure(model, arguments.rounds))
            with ROWS.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: MODELS.index(row["model"]))
    ROWS.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()
