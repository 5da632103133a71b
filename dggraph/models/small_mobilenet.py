"""MobileNetV2s for small images (Sandler et al., arXiv 1801.04381), made of torchvision's blocks.

`dggraph:mobilenet4_8` has four inverted residuals in each of its two stages, and 8 channels before
them. The names are a closed registry, from which archives can be rebuilt.
"""

import re

from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from dggraph.errors import UnknownModelError

NAMES = ("dggraph:mobilenet4_8", "dggraph:mobilenet4_16")
"""Examples; any number of blocks from 2 to 16 and any width up to 99 can be built."""
EXPANSION = 4


class SmallMobileNet(nn.Module):
    """Two stages at a quarter and an eighth of the resolution, after a stem at half of it.

    `default_cfg` declares the input as timm's models do.

    Args:
        num_blocks: inverted residuals per stage; the first one of each has stride 2 and no skip.
        width: channels before the stages, which have two and four times as many.
        num_classes: outputs.
    """

    def __init__(self, num_blocks: int, width: int, num_classes: int = 10) -> None:
        """Build the layers with torch's initial weights."""
        super().__init__()
        self.default_cfg = {"input_size": (3, 32, 32), "crop_pct": 1.0, "interpolation": "bilinear"}
        self.stem = nn.Sequential(
            Conv2dNormActivation(3, 2 * width, stride=2, activation_layer=nn.ReLU6),
            InvertedResidual(2 * width, width, 1, 1),
        )
        self.stage1 = _stage(num_blocks, width, 2 * width)
        self.stage2 = _stage(num_blocks, 2 * width, 4 * width)
        self.head = Conv2dNormActivation(
            4 * width, 16 * width, kernel_size=1, activation_layer=nn.ReLU6
        )
        self.classifier = nn.Linear(16 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, num_classes)."""
        features = self.head(self.stage2(self.stage1(self.stem(x))))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def build_small_mobilenet(name: str, num_classes: int = 10) -> SmallMobileNet:
    """Build the backbone called `name`, for example `dggraph:mobilenet4_8`.

    Raises:
        UnknownModelError: there is no backbone of that name.
    """
    match = re.fullmatch(r"dggraph:mobilenet(\d{1,2})_(\d{1,2})", name)
    num_blocks, width = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not (2 <= num_blocks <= 16 and 1 <= width <= 99):
        raise UnknownModelError(
            f"there is no model {name!r}: write dggraph:mobilenetBLOCKS_WIDTH, with 2 to 16 BLOCKS"
            " per stage and a WIDTH up to 99."
        )
    return SmallMobileNet(num_blocks, width, num_classes)


def _stage(num_blocks: int, num_in: int, num_channels: int) -> nn.Sequential:
    first = InvertedResidual(num_in, num_channels, 2, EXPANSION)
    others = (
        InvertedResidual(num_channels, num_channels, 1, EXPANSION) for _ in range(num_blocks - 1)
    )
    return nn.Sequential(first, *others)
