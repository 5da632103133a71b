"""ResNets for small images, which torchvision and timm lack (He et al., arXiv 1512.03385, 4.2).

`dggraph:resnet32_16` is 32 layers deep and has 16 channels in its first stage. The names are a
closed registry, from which archives can be rebuilt.
"""

import re

from torch import Tensor, nn

from dggraph.errors import UnknownModelError

NAMES = ("dggraph:resnet20_8", "dggraph:resnet20_16", "dggraph:resnet32_16", "dggraph:resnet56_16")
"""Examples; any depth of 6 n + 2 up to 110 and any width up to 99 can be built."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip, with a ReLU after the add."""

    def __init__(self, num_in: int, num_channels: int, stride: int) -> None:
        """Build the layers for `num_in` input and `num_channels` output channels."""
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_channels, 3, stride, 1, bias=False)
        self.bn1, self.bn2, self.relu = (
            nn.BatchNorm2d(num_channels),
            nn.BatchNorm2d(num_channels),
            nn.ReLU(inplace=True),
        )
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, 1, 1, bias=False)
        is_same = stride == 1 and num_in == num_channels
        self.skip = (
            nn.Identity() if is_same else nn.Conv2d(num_in, num_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        output: Tensor = self.relu(inner + self.skip(x))
        return output


class SmallResNet(nn.Module):
    """Three stages at full, half and quarter resolution.

    `default_cfg` declares the input as timm's models do.

    Args:
        depth: 6 n + 2, with n blocks per stage.
        width: channels of the first stage; the next stages have two and four times as many.
        num_classes: outputs.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10) -> None:
        """Build the layers with torch's initial weights."""
        super().__init__()
        self.default_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear"}
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        num_blocks = (depth - 2) // 6
        self.layer1 = _stage(num_blocks, width, width, 1)
        self.layer2 = _stage(num_blocks, width, 2 * width, 2)
        self.layer3 = _stage(num_blocks, 2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.fc(self.layer3(self.layer2(self.layer1(self.stem(x)))).mean((2, 3)))
        return logits


def build_small(name: str, num_classes: int = 10) -> SmallResNet:
    """Build the backbone called `name`, for example `dggraph:resnet32_16`.

    Raises:
        UnknownModelError: there is no backbone of that name.
    """
    match = re.fullmatch(r"dggraph:resnet(\d{1,3})_(\d{1,2})", name)
    depth, width = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not (8 <= depth <= 110 and depth % 6 == 2 and 1 <= width <= 99):
        raise UnknownModelError(
            f"there is no model {name!r}: write dggraph:resnetDEPTH_WIDTH, with a DEPTH of"
            " 6 n + 2 up to 110 and a WIDTH up to 99."
        )
    return SmallResNet(depth, width, num_classes)


def _stage(num_blocks: int, num_in: int, num_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(num_in, num_channels, stride)
    return nn.Sequential(
        first, *(BasicBlock(num_channels, num_channels, 1) for _ in range(num_blocks - 1))
    )
