"""Feature pyramids on trained classifiers: ResNet, RegNet, MobileNetV2 and other chains.

torchvision ships pyramids for ResNet and ResNeXt only. The result here is its `BackboneWithFPN`,
which its detectors accept and `convert_backbone_` makes dynamic.
"""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import RegNet, ResNet
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dggraph.errors import InputError
from dggraph.system.modes import evaluating

STRIDES = (4, 8, 16, 32)
PROBE_SIDE = 64


def pyramid_on(
    classifier: nn.Module, *, out_channels: int = 256, is_frozen: bool = True
) -> BackboneWithFPN:
    """Build a feature pyramid on the trunk of a trained classifier.

    The pyramid reads the last features of strides 4, 8, 16 and 32.

    Args:
        classifier: torchvision's ResNet or RegNet, or a model whose trunk is an `nn.Sequential`
            called `features` (MobileNetV2, EfficientNet, ConvNeXt). Its modules are used, not
            copied. The last 1x1 convolution of MobileNetV2 and EfficientNet, made for the
            classifier, is left out.
        out_channels: channels of every level.
        is_frozen: replace batch norms by `FrozenBatchNorm2d`, as is usual where a batch has few
            images.

    Raises:
        InputError: the classifier has no supported trunk, or the trunk lacks a stride.

    Example:
        >>> import dggraph, torch, torchvision
        >>> pyramid = dggraph.detection.pyramid_on(torchvision.models.resnet18())
        >>> sorted(pyramid(torch.rand(1, 3, 64, 64)))
        ['0', '1', '2', '3', 'pool']
    """
    trunk = nn.Sequential(_layers(classifier))
    if is_frozen:
        freeze_norms_(trunk)
    strides, widths = _strides(trunk)
    last: dict[int, str] = {}
    for (name, layer), stride in zip(trunk.named_children(), strides, strict=True):
        if not (stride in last and _is_pointwise(layer)):
            last[stride] = name
    missing = [stride for stride in STRIDES if stride not in last]
    if missing:
        raise InputError(
            f"{type(classifier).__name__} has no features of stride {missing[0]}; a pyramid needs"
            f" {', '.join(map(str, STRIDES))}. Choose a classifier that has them."
        )
    order = [name for name, _ in trunk.named_children()]
    return BackboneWithFPN(
        trunk,
        {last[stride]: str(level) for level, stride in enumerate(STRIDES)},
        [widths[order.index(last[stride])] for stride in STRIDES],
        out_channels,
        extra_blocks=LastLevelMaxPool(),
    )


def faster_rcnn_on(
    classifier: nn.Module, num_classes: int, *, is_frozen: bool = True, **options: object
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN on `pyramid_on(classifier)`.

    Args:
        classifier: as for `pyramid_on`.
        num_classes: number of classes without the background, which torchvision adds.
        is_frozen: as for `pyramid_on`.
        options: options of `FasterRCNN`, for example `min_size`.

    Example:
        >>> import dggraph, torchvision
        >>> classifier = torchvision.models.resnet18()
        >>> detector = dggraph.detection.faster_rcnn_on(classifier, num_classes=3)
        >>> detector.roi_heads.box_predictor.cls_score.out_features
        4
    """
    return FasterRCNN(pyramid_on(classifier, is_frozen=is_frozen), num_classes + 1, **options)


def freeze_norms_(model: nn.Module) -> None:
    """Replace every `BatchNorm2d` in `model` by an equal `FrozenBatchNorm2d`, in place."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
                frozen.load_state_dict(norm.state_dict())
                setattr(parent, name, frozen)


def _layers(classifier: nn.Module) -> "OrderedDict[str, nn.Module]":
    if isinstance(classifier, ResNet):
        return OrderedDict(
            (name, layer)
            for name, layer in classifier.named_children()
            if name not in ("avgpool", "fc")
        )
    if isinstance(classifier, RegNet):
        return OrderedDict([("stem", classifier.stem), *classifier.trunk_output.named_children()])
    features = getattr(classifier, "features", None)
    if isinstance(features, nn.Sequential):
        return OrderedDict(features.named_children())
    raise InputError(
        f"{type(classifier).__name__} has no nn.Sequential called features and is neither a ResNet"
        " nor a RegNet of torchvision. Build the pyramid yourself with torchvision's"
        " BackboneWithFPN."
    )


def _strides(trunk: nn.Sequential) -> tuple[list[int], list[int]]:
    """Return the stride and the number of channels of each layer's output."""
    strides, widths = [], []
    with evaluating(trunk):
        x = torch.zeros((1, 3, PROBE_SIDE, PROBE_SIDE))
        for layer in trunk:
            x = layer(x)
            strides.append(PROBE_SIDE // x.shape[-1])
            widths.append(x.shape[1])
    return strides, widths


def _is_pointwise(layer: nn.Module) -> bool:
    """Whether the layer is a single 1x1 convolution, with its norm and activation."""
    convolutions = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    return len(convolutions) == 1 and convolutions[0].kernel_size == (1, 1)
