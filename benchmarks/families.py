"""Static networks for benchmarks/fashion_mnist.py that no library has so small."""

from torch import nn
from torchvision.models import MobileNetV2
from torchvision.ops import Conv2dNormActivation


def mobilenet(num_classes: int) -> nn.Module:
    """torchvision's MobileNetV2, narrow: 28 x 28 pixels become 14 x 14, then 7 x 7, with three
    routed blocks at each.
    """
    model = MobileNetV2(
        num_classes=num_classes,
        inverted_residual_setting=[[1, 8, 1, 1], [4, 16, 4, 1], [4, 32, 4, 2]],
        dropout=0.0,
    )
    model.features[-1] = Conv2dNormActivation(32, 128, kernel_size=1, activation_layer=nn.ReLU6)
    model.classifier = nn.Linear(128, num_classes)
    return model
