"""What each pass prints for small networks, one file a network. After a change that is meant:
python tests/helpers/golden.py, then read the diff.

Each file has the backbone's trace, the stages that were found, the wired graph and the lowered
code.
"""

import re
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS
from torch import nn
from torchvision.ops import SqueezeExcitation

import dggraph
from dggraph.compiler.tracing import trace

FOLDER = Path(__file__).parents[1] / "project" / "golden"
IMAGES = torch.zeros(1, 3, 16, 16)


class Residual(nn.Module):
    """x + F(x), with squeeze-and-excitation in F where asked."""

    def __init__(self, *, has_excitation: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.excite = SqueezeExcitation(8, 2) if has_excitation else nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.excite(torch.relu(self.conv(x)))


def chain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.Sequential(*layers),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


PLAIN = {
    "plain_convolutions": lambda: chain(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))),
    "excitation": lambda: chain(*(Residual(has_excitation=True) for _ in range(3))),
    "entry_block": lambda: chain(
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()), Residual(), Residual()
    ),
    "dropped_out": lambda: chain(
        *(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Dropout(0.1), nn.ReLU()) for _ in range(3))
    ),
}
"""Beside those in `kinds`."""
NETWORKS = {
    **{
        f"{kind}-{router}": (build, {"router": router})
        for kind, build in KINDS.items()
        for router in ("node", "stage")
    },
    **{name: (build, {}) for name, build in PLAIN.items()},
    "windowed": (PLAIN["plain_convolutions"], {"wiring": "window(2)"}),
    "kept_on_demand": (PLAIN["entry_block"], {"residual": "keep"}),
}


def printed(name: str) -> str:
    build, options = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    net = dggraph.convert(model, IMAGES, **options)
    found = [
        f"{name}: entry {stage.entry}, blocks"
        f" {', '.join(f'{block.input} -> {block.output}' for block in stage.blocks)}"
        for name, stage in zip(net.graph.stages, net.blueprint.found, strict=True)
    ]
    parts = {
        "traced": str(trace(model, (), IMAGES).graph).strip(),
        "found": "\n".join(found),
        "wired": str(net.graph),
        "lowered": re.sub(r";  .* = None", "", net.lowered.code).strip(),
    }
    return "".join(f"# {title}\n{text}\n\n" for title, text in parts.items()).rstrip() + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in NETWORKS:
        (FOLDER / f"{name}.txt").write_text(printed(name))
