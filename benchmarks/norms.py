"""Which statistics should the batch norms of routed blocks have? Test accuracy on Fashion-MNIST,
small nets trained to skip work.

    python benchmarks/norms.py [--seeds 3] [--epochs 5] [--images 6000]

Training is dense-masked with anchored gates, threshold 0.5 and a budget. Per seed, two nets:
- trained as the package does, dead rows (zeros) in the batch statistics, then tested (a) as
  trained, (a') with statistics taken anew over the training images, dead rows still in, (b) after
  `recalibrate_norms_`;
- (c) trained with batch statistics of live rows only, tested as trained. (a') tells apart what a
fresh average does and what leaving dead rows out does. Data: `apt-get install
dataset-fashion-mnist`.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dggraph
from dggraph import losses
from dggraph.data.idx import read_idx
from dggraph.network.norms import recalibrate_norms_

DATA = Path("/usr/share/datasets/fashion-mnist")
BATCH = 64


class Block(nn.Module):
    """x + F(x), two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))


class Net(nn.Module):
    """Two stages of four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        )
        self.stage1 = nn.Sequential(*(Block(16) for _ in range(4)))
        self.down = nn.Sequential(
            nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        )
        self.stage2 = nn.Sequential(*(Block(32) for _ in range(4)))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        logits: Tensor = self.head(torch.relu(x).mean((2, 3)))
        return logits


class LiveNorm(nn.BatchNorm2d):
    """Batch statistics over the rows that `live` names; the dead rows' results are never used, so
    they are zeros.
    """

    live: dict[str, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        live_B = self.live.get("rows")
        if not self.training or live_B is None or bool(live_B.all()):
            return super().forward(x)
        if int(live_B.sum()) < 2:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        result = torch.zeros_like(x)
        return result.index_put((live_B.nonzero()[:, 0],), super().forward(x[live_B]))


def use_live_rows(net: Any) -> None:
    """Make the norms of routed blocks see live rows only. A dead block's input is exactly zero,
    which tells.
    """
    for stage in (net.lowered.stage1, net.lowered.stage2):
        for block in stage:
            live: dict[str, Tensor] = {}

            def note(
                _module: nn.Module, args: tuple[Tensor], live: dict[str, Tensor] = live
            ) -> None:
                live["rows"] = args[0].detach().flatten(1).ne(0).any(1)

            block.conv1.register_forward_pre_hook(note)
            for norm in (block.norm1, block.norm2):
                norm.__class__, norm.live = LiveNorm, live


def load(split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images, normalised, and their labels."""
    pixels_NHW = read_idx(DATA / f"{split}-images-idx3-ubyte.gz", 3)[:count]
    labels_N = read_idx(DATA / f"{split}-labels-idx1-ubyte.gz", 1)[:count]
    images = (torch.from_numpy(pixels_NHW.copy()).float()[:, None] / 255 - 0.2860) / 0.3530
    return images, torch.from_numpy(labels_N.copy()).long()


def train(
    seed: int, images: Tensor, labels: Tensor, epochs: int, *, target: float, live_rows: bool
) -> Any:
    """A net that meets the budget about `target`."""
    torch.manual_seed(seed)
    net = dggraph.convert(Net(), images[:1], router="node").train()
    if live_rows:
        use_live_rows(net)
    routers = [p for name, p in net.lowered.named_parameters() if name.startswith("dg_")]
    others = [p for name, p in net.lowered.named_parameters() if not name.startswith("dg_")]
    optimiser = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.05}, {"params": routers, "weight_decay": 0.0}],
        lr=3e-3,
    )
    num_steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=num_steps)
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            output, gates = net(images[rows], return_gates=True)
            loss = nn.functional.cross_entropy(output, labels[rows])
            if step >= num_steps // 5:
                loss = loss + 20 * losses.budget(gates, target).float()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
    return net.eval()


@torch.no_grad()
def test(net: Any, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, kept MACs, and the share of (image, block) pairs that are not computed."""
    parts = [dggraph.record(net, chunk, batch_size=250) for chunk in images.split(500)]
    right = torch.cat([part.output for part in parts]).argmax(1) == labels
    macs = torch.cat([part.macs for part in parts]).double().mean() / net.macs_table.static
    dead = [
        matrix[:, :, vertex].ne(0).any(1).logical_not().double().mean()
        for part in parts
        for matrix in part.adjacency.values()
        for vertex in range(1, matrix.shape[-1] - 1)
    ]
    return {
        "accuracy": 100 * float(right.double().mean()),
        "kept": float(macs),
        "dead": float(torch.stack(dead).mean()),
    }


@torch.no_grad()
def refresh_(net: Any, images: Tensor) -> None:
    """Statistics anew as `torch.optim.swa_utils.update_bn` takes them: dense, dead rows in."""
    torch.optim.swa_utils.update_bn(images.split(BATCH), net)
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--target", type=float, default=0.6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = load("train", options.images)
    held_out = load("t10k", 4000)
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        net = train(seed, images, labels, options.epochs, target=options.target, live_rows=False)
        fresh, live = copy.deepcopy(net), copy.deepcopy(net)
        refresh_(fresh, images)
        recalibrate_norms_(live, images.split(BATCH))
        other = train(seed, images, labels, options.epochs, target=options.target, live_rows=True)
        names = [
            "(a) as trained",
            "(a') anew, dead rows in",
            "(b) recalibrate_norms_",
            "(c) trained on live rows",
        ]
        for name, one in zip(names, [net, fresh, live, other], strict=True):
            rows.setdefault(name, []).append(test(one, *held_out))
            print(json.dumps({"seed": seed, "statistics": name} | rows[name][-1]), flush=True)
    print(
        "\n| statistics | accuracy, mean ± spread | minus (a), per seed | kept | dead"
        " |\n|---|---|---|---|---|"
    )
    base = [row["accuracy"] for row in rows["(a) as trained"]]
    for name, found in rows.items():
        scores = [row["accuracy"] for row in found]
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        gains = " ".join(f"{score - one:+.2f}" for score, one in zip(scores, base, strict=True))
        kept, dead = (statistics.mean(row[key] for row in found) for key in ("kept", "dead"))
        print(
            f"| {name} | {statistics.mean(scores):.2f} ± {spread:.2f} | {gains} | {kept:.2f} |"
            f" {dead:.2f} |"
        )


if __name__ == "__main__":
    main()
