"""Every baseline on four torchvision networks: does it convert, start as it says, learn, come back?

    python benchmarks/baselines.py --rows ROWS.jsonl --table TABLE.md

Rows are written as they come, and those that are there are not measured again. Images are random,
since the question is whether each method works, not how well.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import dggraph
from dggraph.baselines import BASELINES

MODELS = ("mobilenet_v2", "regnet_y_400mf", "resnet50", "resnext50_32x4d")
SIDE, BATCH, STEPS, RATE = 32, 4, 50, 0.01


def check(method: str, model: str) -> dict[str, object]:
    """Return the row of one method on one network."""
    torch.manual_seed(0)
    loaded = dggraph.models.registry.load_model(model, num_classes=10)
    x, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) % 10
    with torch.no_grad():
        expected = loaded.model.eval()(x)
    start = time.process_time()
    net = BASELINES[method](loaded, x[:1]).eval()
    seconds = time.process_time() - start
    with torch.no_grad():
        difference = float((net(x) - expected).abs().max() / expected.abs().max())
        alone = torch.cat([net(image[None]) for image in x])
        rows = float((net(x) - alone).abs().max() / alone.abs().max())
    added = sum(p.numel() for n, p in net.named_parameters() if n.startswith("dg_"))
    losses, missing = learn_(net, x, labels)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        dggraph.save(net, Path(folder, "archive"))
        again = dggraph.load(Path(folder, "archive"))
        is_back = torch.equal(again(x), net.eval()(x))
    return {
        "method": method,
        "model": model,
        "seconds": round(seconds, 2),
        "difference": difference,
        "one_by_one": rows,
        "added_parameters": added,
        "without_gradient": missing,
        "first_losses": round(sum(losses[:5]) / 5, 3),
        "last_losses": round(sum(losses[-5:]) / 5, 3),
        "archive": is_back,
    }


def learn_(net: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> tuple[list[float], list[str]]:
    """Take `STEPS` steps, and return the losses and the parameters without a gradient."""
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    losses, missing = [], list[str]()
    for step in range(STEPS):
        loss = 0.0
        if isinstance(net, dggraph.baselines.BaselineNetwork):
            net.anneal_(step / STEPS)
            output, values = net(x, return_values=True)
            own = net.auxiliary_loss(values)
            loss = 0.0 if own is None else own
        else:
            output = net(x)
        task = nn.functional.cross_entropy(output, labels)
        (task + loss).backward()
        if step == 0:
            missing = [
                name for name, p in net.named_parameters() if p.requires_grad and p.grad is None
            ]
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(task.detach()))
    return losses, missing


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as a page."""
    lines = [
        "# Baselines on four networks",
        "",
        f"Random weights, {SIDE} x {SIDE} pixels, a batch of {BATCH} random images, {STEPS} steps"
        f" of SGD at {RATE} with momentum on that batch. Differences are relative to the largest"
        " output, in float32.",
        f" {len(rows)} of {len(MODELS) * len(BASELINES)} pairs have been measured; the command"
        " measures the others.",
        "",
        "```bash",
        "python benchmarks/baselines.py --rows docs/tables/baselines.jsonl"
        " --table docs/tables/baselines.md",
        "```",
        "",
        "| Network | Method | Difference at the start | Batch against one by one | Added parameters"
        " | Without gradient | Mean loss, first 5 and last 5 steps | Archive |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        start = "0" if row["difference"] == 0 else f"{row['difference']:.1e}"
        lines.append(
            f"| {row['model']} | `{row['method']}` | {start} | {row['one_by_one']:.1e} |"
            f" {row['added_parameters']:,} | {len(row['without_gradient'])} |"
            f" {row['first_losses']:.2f}, {row['last_losses']:.2f} |"
            f" {'bitwise' if row['archive'] else 'differs'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the rows that are missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    arguments = parser.parse_args()
    rows = []
    if arguments.rows.exists():
        rows = [json.loads(line) for line in arguments.rows.read_text().splitlines()]
    begun = time.monotonic()
    for model in MODELS:
        for method in BASELINES:
            is_there = any(row["model"] == model and row["method"] == method for row in rows)
            if is_there or time.monotonic() - begun > arguments.seconds:
                continue
            rows.append(check(method, model))
            with arguments.rows.open("a") as stream:
                stream.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    rows.sort(key=lambda row: (MODELS.index(row["model"]), list(BASELINES).index(row["method"])))
    arguments.table.write_text(table(rows))


if __name__ == "__main__":
    main()
