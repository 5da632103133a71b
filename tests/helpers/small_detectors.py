"""Detectors of torchvision for small images."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import mobilenet_backbone

SMALL = {"min_size": 96, "max_size": 160}


def mobilenet_fpn() -> nn.Module:
    return detection.FasterRCNN(
        mobilenet_backbone(backbone_name="mobilenet_v2", weights=None, fpn=True),
        5,
        rpn_anchor_generator=detection.rpn.AnchorGenerator(
            ((32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 3
        ),
        **SMALL,
    )


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()
