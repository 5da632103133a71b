"""One backbone for each kind of stage, small enough to compile in a second or two: kept, lifted,
concat, adapter, tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from reference import randomise, randomise_routers
from torch import Tensor, nn
from torchvision.models.densenet import _DenseBlock
from torchvision.models.squeezenet import Fire

import dggraph

WIDTH = 8


class Kept(nn.Module):
    """ReLU after the add, as in ResNet: the skip stays in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        result: Tensor = self.relu(x + self.norm2(self.conv2(y)))
        return result


class Lifted(nn.Module):
    """Nothing after the add, as in MobileNetV2: the skip becomes edges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(WIDTH, 2 * WIDTH, 1, bias=False),
            nn.BatchNorm2d(2 * WIDTH),
        )
        self.relu = nn.ReLU6(inplace=True)
        self.conv2, self.norm2 = (
            nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return result


class Tokens(nn.Module):
    """A token MLP: channels last, no norm with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return result


class Backbone(nn.Module):
    """Stem, one stage, pooled head of 5 outputs."""

    def __init__(self, layers: nn.Module, *, has_tokens: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTH, 3, stride=2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()
        )
        self.layers = layers
        self.head = nn.Linear(width, 5)
        self.has_tokens = has_tokens

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.layers(x.flatten(2).transpose(1, 2) if self.has_tokens else x)
        logits: Tensor = self.head(x.mean(1) if self.has_tokens else x.mean((2, 3)))
        return logits


KINDS: dict[str, Callable[[], nn.Module]] = {
    "kept": lambda: Backbone(nn.Sequential(*(Kept() for _ in range(3)))),
    "lifted": lambda: Backbone(nn.Sequential(*(Lifted() for _ in range(3)))),
    "concat": lambda: Backbone(_DenseBlock(3, WIDTH, 2, 4, 0.0), width=WIDTH + 12),
    "adapter": lambda: Backbone(
        nn.Sequential(Fire(8, 4, 4, 4), Fire(8, 4, 8, 8), Fire(16, 4, 8, 8), Fire(16, 4, 12, 12)),
        width=24,
    ),
    "tokens": lambda: Backbone(nn.Sequential(*(Tokens() for _ in range(3))), has_tokens=True),
}


def converted(kind: str, router: str = "node") -> Any:
    """A net of that kind with random weights, and routers that send images different ways."""
    return randomise_routers(
        dggraph.convert(randomise(KINDS[kind]()), torch.rand(1, 3, 16, 16), router=router)
    ).eval()
