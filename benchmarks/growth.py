"""How a deep stage grows: ResNet-152's 36-block stage alone, complete wiring against window(4) and
against a quarter of the edges open.

    python benchmarks/growth.py [--rounds 9]

The stage is run by itself on 8 x 1024 x 8 x 8: inference (sparse executor) and a training step
(forward and backward), over the static chain.
"""

import argparse

import torch
import torchvision
from torch import nn

import dggraph
from dggraph.evaluation.timing import compare
from dggraph.network.gate_contexts import pinned_gates


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 1024, 1)
        self.layer3 = torchvision.models.resnet152().layer3[1:]
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.layer3(self.stem(x))).flatten(1)  # type: ignore[no-any-return]


def weights_of(
    net: dggraph.network.network.DynamicNetwork, share: float
) -> dict[str, torch.Tensor]:
    """Static edges and a random `share` of the others, at one over the number of edges into the
    node.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, stage in net.macs_table.stages.items():
        net.lowered.get_submodule(f"dg_{name}").get_buffer("threshold").zero_()
        counts = torch.bincount(torch.tensor(stage.layout.targets))
        edges = net.graph.edges(name)
        is_open = [
            edge.is_static or float(torch.rand((), generator=generator)) < share for edge in edges
        ]
        values = [
            1.0 / float(counts[t]) if one else 0.0
            for one, t in zip(is_open, stage.layout.targets, strict=True)
        ]
        weights[name] = torch.tensor(values)
    return weights


def measure(label: str, wiring: str, share: float, rounds: int) -> None:
    backbone, x = Stage(), torch.randn(8, 3, 8, 8)
    net = dggraph.convert(backbone, x[:1], wiring=wiring, router="stage")
    with pinned_gates(net, weights_of(net, share)):
        backbone.eval()
        net.eval()
        with torch.no_grad():
            inference = compare(lambda: backbone(x), {label: lambda: net(x)}, rounds=rounds)[1]
        backbone.train()
        net.train()
        training = compare(
            lambda: backbone(x).sum().backward(),
            {label: lambda: net(x).sum().backward()},
            rounds=rounds,
        )[1]
    print(
        f"{label}: {net.report.num_edges} edges; inference"
        f" {inference.ratio:.2f}{'' if inference.is_reliable else '?'}, training step"
        f" {training.ratio:.2f}{'' if training.is_reliable else '?'} of the static stage's time",
        flush=True,
    )


if __name__ == "__main__":
    dggraph.keep_freed_memory()  # for both sides
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    num_rounds = parser.parse_args().rounds
    for case in (
        ("complete", "complete", 1.0),
        ("window(4)", "window(4)", 1.0),
        ("a quarter open", "complete", 0.25),
    ):
        measure(*case, num_rounds)
