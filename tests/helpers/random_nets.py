"""Small networks of each residual kind and of any depth, for tests over random wirings."""

from itertools import pairwise

import torch
from torch import Tensor, nn

CHANNELS, SIDE = 6, 6


class Kept(nn.Module):
    """A residual block with a ReLU after the add: it cannot be lifted."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first, self.second, self.act = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, out, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.second(self.act(self.first(x))))


class Liftable(Kept):
    """A pre-activation residual block: nothing after the add."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


class Branchy(Kept):
    """Two branches and no residual; channels may change."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.first(x)) - 0.5 * self.second(self.act(x)))


class Layer(nn.Module):
    """A DenseNet layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(torch.cat(features, 1).relu())


class Grown(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(CHANNELS + 4 * i) for i in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class Net(nn.Module):
    def __init__(self, kind: str, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        widths = [CHANNELS] * (depth + 1)
        if kind == "adapter":
            widths = [CHANNELS, 8, 8, 12, 6, 10][: depth + 1]
            self.body: nn.Module = nn.Sequential(*(Branchy(a, b) for a, b in pairwise(widths)))
        elif kind == "concat":
            self.body = Grown(depth)
            widths = [CHANNELS + 4 * depth]
        else:
            block = Kept if kind == "kept" else Liftable
            self.body = nn.Sequential(*(block(CHANNELS, CHANNELS) for _ in range(depth)))
        self.head = nn.Conv2d(widths[-1], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x))).mean((2, 3))


class TokenBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.second = (
            nn.LayerNorm(CHANNELS),
            nn.Linear(CHANNELS, CHANNELS),
            nn.Linear(CHANNELS, CHANNELS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.mix(self.norm(x))))


class Tokens(nn.Module):
    """Patches as tokens, channels last."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 2, stride=2), nn.Linear(CHANNELS, 5)
        self.body = nn.Sequential(*(TokenBlock() for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).flatten(2).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]
