"""Train a dynamic graph network on Fashion-MNIST in a plain loop, about four minutes on two cores,
and save it.

    python examples/train_fashion_mnist.py ARCHIVE [DATA]

DATA is Debian's dataset-fashion-mnist, or the four .gz files anywhere.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

import dggraph
from dggraph.data.idx import read_idx
from dggraph.data.pixels import FASHION_CLASSES
from dggraph.models.preprocessing import Preprocess

EPOCHS, BATCH, KEPT = 3, 128, 0.7


def read(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 28, 28) in [-1, 1] and labels (N,)."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    gray = torch.from_numpy(images[:, None].copy()).float() / 127.5 - 1
    return gray.expand(-1, 3, -1, -1), torch.from_numpy(labels.copy()).long()


def main(archive: str, folder: str = "/usr/share/datasets/fashion-mnist") -> None:
    torch.manual_seed(0)
    (train_x, train_y), (test_x, test_y) = read(Path(folder), "train"), read(Path(folder), "t10k")
    net = dggraph.convert("dggraph:resnet20_8", train_x[:1], router="node", threshold=0).train()
    steps = EPOCHS * (len(train_x) // BATCH)
    named = list(
        net.lowered.named_parameters()
    )  # routers (dg_*) get no weight decay and a rate of their own
    groups = [
        {
            "params": [p for n, p in named if n.startswith("dg_") == (not decay)],
            "weight_decay": decay,
        }
        for decay in (5e-4, 0)
    ]
    optimiser = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=[0.3, 0.05], total_steps=steps)
    for step in range(steps):
        net.set_threshold(min(0.5, step / steps))  # annealed in over the first half
        chosen = torch.randint(len(train_x), (BATCH,))
        logits, gates = net(
            train_x[chosen] if step % 2 else train_x[chosen].flip(3), return_gates=True
        )
        loss = F.cross_entropy(logits, train_y[chosen]) + dggraph.losses.budget(gates, KEPT)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"step {step} of {steps}: loss {loss:.3f}, kept"
                f" {dggraph.losses.kept(gates).mean():.3f}",
                flush=True,
            )
    recording = dggraph.record(net, test_x, batch_size=500)
    accuracy, kept = (
        (recording.output.argmax(1) == test_y).float().mean(),
        recording.macs.double().mean() / net.report.total_macs,
    )
    paths = {
        tuple(weight != 0 for stage in path.weights.values() for weight in stage)
        for path in recording.paths
    }
    print(f"test accuracy {accuracy:.4f}, MACs kept {kept:.3f}, {len(paths)} distinct paths")
    preprocess = Preprocess(
        input_size=(3, 28, 28), mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=1.0
    )
    dggraph.save(net, archive, preprocess=preprocess, labels=FASHION_CLASSES)


if __name__ == "__main__":
    main(*sys.argv[1:])
