"""Skipped layers: dggraph's sparse executor against masks, as the authors run them.

    OMP_NUM_THREADS=1 python benchmarks/layer_skip.py --rows docs/benchmarks/layer_skip.jsonl

CPU time of one process, one thread. The three forms (backbone, masked, sparse) take turns, in an
order that is reversed each round; a row has the medians over rounds of the ratios to the backbone.
Which blocks are closed is drawn per image.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dggraph
from dggraph.baselines import layer_skip
from dggraph.system.allocator import keep_freed_memory


class Drawn(nn.Module):
    """The last layer of a gate that is open for a given share of the images, at random.

    An image keeps its draw in both forms, although sums in another order change its features in
    the last digits, and the sparse form asks for some images only: an image is the one whose
    features, when the masked form first ran, are nearest.
    """

    def __init__(self, share: float, seed: int) -> None:
        super().__init__()
        self.share, self.seed = share, seed
        self.known: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map features (B, H) to logits (B, 1)."""
        self.known = hidden.clone() if self.known is None else self.known
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(len(self.known), 1, generator=generator)
        nearest = torch.cdist(hidden, self.known).argmin(1)
        return (drawn[nearest] < self.share).to(hidden.dtype) - 0.5


@torch.no_grad()
def measure(model: str, side: int, batch: int, share: float, rounds: int) -> dict[str, object]:
    """Return the row of one network, batch size and share of open gates."""
    torch.manual_seed(0)
    backbone = dggraph.models.registry.load_model(model).model.eval()
    x = torch.randn(batch, 3, side, side)
    net = layer_skip(backbone, x[:1]).eval()
    for seed, gate in enumerate(net.dg_method.children()):
        gate.last = Drawn(share, seed)

    def run(form: str) -> torch.Tensor:
        if form == "backbone":
            return backbone(x)
        net.executor = form
        return net(x)

    forms = ["backbone", "masked", "sparse"]
    difference = float((run("masked") - run("sparse")).abs().max() / run("masked").abs().max())
    ratios: dict[str, list[float]] = {"masked": [], "sparse": []}
    for number in range(rounds):
        seconds = {}
        for form in forms if number % 2 else forms[::-1]:
            start = time.process_time()
            run(form)
            seconds[form] = time.process_time() - start
        for form, found in ratios.items():
            found.append(seconds[form] / seconds["backbone"])
    _, values = net(x, return_values=True)
    with FlopCounterMode(display=False) as counter:
        backbone(x[:1])
    kept = float(net.macs(x).mean()) / (counter.get_total_flops() / 2)
    return {
        "model": model,
        "side": side,
        "batch": batch,
        "open": float(values["gates"].mean()),
        "kept": kept,
        "difference": difference,
        "rounds": rounds,
        **{form: round(statistics.median(found), 3) for form, found in ratios.items()},
    }


def main() -> None:
    """Write a row per network, batch size and share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    for batch in arguments.batch:
        for share in (1.0, 0.7, 0.4):
            row = measure(arguments.model, arguments.side, batch, share, arguments.rounds)
            with arguments.rows.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
