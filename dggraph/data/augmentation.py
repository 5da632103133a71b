"""Transforms from pictures to the network's input, and MixUp and CutMix of batches.

Training transforms are random; evaluation transforms are deterministic. All randomness comes from
torch's generator, so that `sampler.SeededDataset` can reproduce each sample. A picture is a PIL
image or a uint8 tensor (1 or C, H, W). Shift, flip and normalisation of small pictures run in
numpy, since a single call of a torch transform would cost as much.

Shape suffixes: B instances, C channels, H height, W width, K classes, 1 an axis of length one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, functional, v2

from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, fit_image, resized_side

Picture = Image.Image | Tensor
Transform = Callable[[Picture], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """The random augmentation of training images."""

    crop_padding: int | None = None
    """Shift by up to this many pixels in each direction; None draws a random resized crop."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random resized crop, as a fraction of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the random resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    randaugment: tuple[int, int] | None = None
    """Number of operations per image, and their magnitude."""
    reprob: float = 0.0
    """Probability of erasing a rectangle."""


def evaluation_transform(preprocess: Preprocess) -> Transform:
    """Return the transform of evaluation, which maps a picture to (C, H, W) float32.

    The result is bitwise identical to that of `preprocess_image`.

    Raises:
        InputError: mean and std do not fit the channels.
    """
    return partial(_in_turn, (partial(_fit, preprocess=preprocess), _normaliser(preprocess)))


def training_transform(augmentation: Augmentation, preprocess: Preprocess) -> Transform:
    """Return the transform of training: crop, flip, colour, normalise and erase at random.

    It maps a picture to (C, H, W) float32. With `crop_padding`, a picture is fitted as for
    evaluation and then shifted by up to that many pixels in each direction, with black moving in.
    Without it, the transform takes a random resized crop. With `crop_padding = 0`, `hflip = 0` and
    nothing else it is `evaluation_transform`.

    Raises:
        InputError: mean and std do not fit the channels, or the shift could move a picture out of
            view.
    """
    _, height, width = preprocess.input_size
    steps: list[Callable[..., Any]] = []
    if augmentation.crop_padding is None:
        steps.append(partial(_in_channels, num_channels=preprocess.input_size[0]))
        mode = InterpolationMode(preprocess.interpolation)
        crop = v2.RandomResizedCrop(
            (height, width),
            augmentation.scale,
            augmentation.ratio,
            mode,
            antialias=preprocess.antialias,
        )
        steps += [crop, v2.RandomHorizontalFlip(augmentation.hflip)]
    else:
        if augmentation.crop_padding >= min(height, width):
            raise InputError(
                f"crop_padding = {augmentation.crop_padding} can shift images of {width}x{height}"
                " pixels out of view; make it smaller."
            )
        steps.append(partial(_fit, preprocess=preprocess))
        if augmentation.crop_padding or augmentation.hflip:
            steps.append(
                partial(
                    _shift_and_flip, padding=augmentation.crop_padding, hflip=augmentation.hflip
                )
            )
    if augmentation.color_jitter:
        steps.append(
            v2.ColorJitter(
                augmentation.color_jitter, augmentation.color_jitter, augmentation.color_jitter
            )
        )
    if augmentation.randaugment is not None:
        steps.append(
            v2.RandAugment(*augmentation.randaugment, interpolation=InterpolationMode.BILINEAR)
        )
    steps.append(_normaliser(preprocess))
    if augmentation.reprob:
        steps.append(v2.RandomErasing(augmentation.reprob))
    return partial(_in_turn, tuple(steps))


def mix(
    images_BCHW: Tensor,
    labels_B: Tensor,
    num_classes: int,
    *,
    mixup: float,
    cutmix: float,
    smoothing: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Apply MixUp or CutMix to a batch and its roll by one, and smooth the labels.

    Args:
        images_BCHW: float images.
        labels_B: int64 labels.
        num_classes: outputs of the network.
        mixup: alpha of MixUp; 0 disables it. With CutMix too, each is used for half of the batches.
        cutmix: alpha of CutMix; 0 disables it.
        smoothing: label smoothing.
        seed: seed of the draw; the state of torch's generator is restored.

    Returns:
        Images, and the unchanged labels if nothing is mixed or smoothed, else targets (B, K)
        float32 that sum to 1. With m the share of an image's own pixels or weight and s the
        smoothing, they are `(1 - s) * (m * own + (1 - m) * other) + s / K`.

    Raises:
        InputError: a label is not an output of the network.
    """
    if not (mixup or cutmix or smoothing):
        return images_BCHW, labels_B
    if int(labels_B.min()) < 0 or int(labels_B.max()) >= num_classes:
        raise InputError(
            f"the batch has labels from {int(labels_B.min())} to {int(labels_B.max())}, but the"
            f" network has {num_classes} outputs; set num_classes."
        )
    targets_BK = nn.functional.one_hot(labels_B, num_classes).float()
    if mixup or cutmix:
        before = torch.random.get_rng_state()
        # torch.manual_seed would reseed GPUs too, and takes 0.2 ms
        torch.default_generator.manual_seed(seed)
        try:
            is_cutmix = bool(cutmix) and (not mixup or float(torch.rand(())) < 0.5)
            mixer = v2.CutMix(alpha=cutmix) if is_cutmix else v2.MixUp(alpha=mixup)
            images_BCHW, targets_BK = mixer(images_BCHW, targets_BK)
        finally:
            torch.random.set_rng_state(before)
    return images_BCHW, targets_BK * (1 - smoothing) + smoothing / num_classes


def _in_turn(steps: Sequence[Callable[..., Any]], picture: Picture) -> Tensor:
    for step in steps:
        picture = step(picture)
    assert isinstance(picture, Tensor)
    return picture


def _fit(picture: Picture, *, preprocess: Preprocess) -> Tensor:
    """Resize and crop as for evaluation, to uint8; keep a tensor that has the right size."""
    height, width = preprocess.input_size[1:]
    if isinstance(picture, Tensor):
        if picture.shape[1:] == (height, width) and resized_side(preprocess) == min(height, width):
            return picture
        image: Image.Image = functional.to_pil_image(picture)
    else:
        image = picture
    return fit_image(image, preprocess)


def _in_channels(picture: Picture, *, num_channels: int) -> Picture:
    if isinstance(picture, Tensor):
        return picture  # normalisation repeats grey channels
    mode = "RGB" if num_channels == 3 else "L"
    return picture if picture.mode == mode else picture.convert(mode)


def _shift_and_flip(pixels_CHW: Tensor, *, padding: int, hflip: float) -> Tensor:
    """Take a random crop of the picture padded with black, then flip it at random.

    The distribution is that of v2's Pad, RandomCrop and RandomHorizontalFlip.
    """
    down, right, flip = torch.rand(3).tolist()
    top, left = int(down * (2 * padding + 1)) - padding, int(right * (2 * padding + 1)) - padding
    source = pixels_CHW.numpy()
    _, height, width = source.shape
    shifted = np.zeros(source.shape, np.uint8)
    canvas = shifted[:, :, ::-1] if flip < hflip else shifted
    canvas[:, max(0, -top) : height - max(0, top), max(0, -left) : width - max(0, left)] = source[
        :, max(0, top) : height + min(0, top), max(0, left) : width + min(0, left)
    ]
    return torch.from_numpy(shifted)


def _normaliser(preprocess: Preprocess) -> Callable[[Picture], Tensor]:
    channels = preprocess.input_size[0]
    if channels not in (1, 3):
        raise InputError(
            f"the network reads {channels} channels, but images have 3, or 1 in grey. Give a"
            " dataset function of your own."
        )
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) != channels:
            raise InputError(
                f"{name} = {values} has {len(values)} numbers, but the network reads {channels}"
                " channels; give one for each."
            )
    if min(preprocess.std) <= 0:
        raise InputError(
            f"std = {preprocess.std}: pixels are divided by std, so each value must be larger than"
            " 0."
        )
    mean_C11, std_C11 = (
        np.array(values, np.float32).reshape(-1, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    return partial(_normalise, mean_C11=mean_C11, std_C11=std_C11)


def _normalise(
    picture: Picture, *, mean_C11: NDArray[np.float32], std_C11: NDArray[np.float32]
) -> Tensor:
    """Scale, subtract and divide in the order and precision of `preprocess_image`.

    A grey picture becomes as many channels as there are means.
    """
    pixels = picture if isinstance(picture, Tensor) else functional.pil_to_tensor(picture)
    # an image file has its channels last, in which the next ops are five times slower
    scaled = pixels.numpy().astype(np.float32, order="C")
    scaled /= 255
    normalised = scaled - mean_C11
    normalised /= std_C11
    return torch.from_numpy(normalised)
