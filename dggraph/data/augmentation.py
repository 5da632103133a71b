"""From a picture to what the network reads, at random for training, always the same for evaluation;
and batches mixed with themselves.

Everything random is drawn from torch's generator, so `order.SeededDataset` gives each sample again.
A picture is a PIL image or a uint8 tensor (1 or C, H, W). What small pictures need (shift, flip,
normalise) is done in numpy: one call of a torch transform costs as much.

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
    """What is drawn at random for a training image."""

    crop_padding: int | None = None
    """Shift by up to so many pixels each way; None draws a random resized crop."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random resized crop, as a fraction of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the random resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation."""
    randaugment: tuple[int, int] | None = None
    """Operations an image, and their magnitude."""
    reprob: float = 0.0
    """Probability of erasing a rectangle."""


def evaluation_transform(preprocess: Preprocess) -> Transform:
    """What `preprocess_image` does, to the bit, for a picture: (C, H, W) float32.

    Raises:
        InputError: mean and std do not fit the channels.
    """
    return partial(_in_turn, (partial(_fit, preprocess=preprocess), _normaliser(preprocess)))


def training_transform(augmentation: Augmentation, preprocess: Preprocess) -> Transform:
    """Crop, flip, colour, normalise and erase at random: (C, H, W) float32.

    With `crop_padding` a picture is fitted as for evaluation and then shifted by up to so many
    pixels each way, black moving in; without, it is a random resized crop. Of `crop_padding = 0`,
    `hflip = 0` and nothing else it is `evaluation_transform`.

    Raises:
        InputError: mean and std do not fit the channels, or nothing of a picture would be left.
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
                f"crop_padding = {augmentation.crop_padding} shifts images of {width}x{height}"
                " pixels out of sight; make it smaller."
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
    """MixUp or CutMix of a batch with itself, rolled by one, and label smoothing.

    Args:
        images_BCHW: float.
        labels_B: int64.
        num_classes: outputs of the network.
        mixup: alpha of MixUp; 0 is none. With CutMix too, each is used for half of the batches.
        cutmix: alpha of CutMix; 0 is none.
        smoothing: of labels.
        seed: of the draw; torch's generator is left as it was.

    Returns:
        Images, and labels as they came where nothing is mixed or smoothed, else targets (B, K)
        float32 that sum to 1: with m the share of an image's own pixels or weight and s the
        smoothing, `(1 - s) * (m * own + (1 - m) * other) + s / K`.

    Raises:
        InputError: a label is not an output of the network.
    """
    if not (mixup or cutmix or smoothing):
        return images_BCHW, labels_B
    if int(labels_B.min()) < 0 or int(labels_B.max()) >= num_classes:
        raise InputError(
            f"a label is {int(labels_B.max())}, but the network has {num_classes} outputs; set"
            " num_classes."
        )
    targets_BK = nn.functional.one_hot(labels_B, num_classes).float()
    if mixup or cutmix:
        before = torch.random.get_rng_state()
        torch.default_generator.manual_seed(
            seed
        )  # torch.manual_seed would reset GPUs too, and takes 0.2 ms
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
    """Resized and cropped as for evaluation, uint8; a tensor that has the size already is left
    alone.
    """
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
        return picture  # grey ones are repeated when they are normalised
    mode = "RGB" if num_channels == 3 else "L"
    return picture if picture.mode == mode else picture.convert(mode)


def _shift_and_flip(pixels_CHW: Tensor, *, padding: int, hflip: float) -> Tensor:
    """A random crop of the picture padded with black, then a flip: what v2's Pad, RandomCrop and
    RandomHorizontalFlip give.
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
            f"the network reads {channels} channels; images have 3, or 1 in grey. Name a dataset"
            " function of your own."
        )
    for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) != channels:
            raise InputError(
                f"{name} = {values} has {len(values)} numbers, but the network reads {channels}"
                " channels; give one for each."
            )
    if min(preprocess.std) <= 0:
        raise InputError(
            f"std = {preprocess.std}: pixels are divided by it, so each must be larger than 0."
        )
    mean_C11, std_C11 = (
        np.array(values, np.float32).reshape(-1, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    return partial(_normalise, mean_C11=mean_C11, std_C11=std_C11)


def _normalise(
    picture: Picture, *, mean_C11: NDArray[np.float32], std_C11: NDArray[np.float32]
) -> Tensor:
    """Scale, subtract, divide, in the order and precision of `preprocess_image`; a grey picture
    becomes as many channels as there are means.
    """
    pixels = picture if isinstance(picture, Tensor) else functional.pil_to_tensor(picture)
    scaled = pixels.numpy().astype(
        np.float32, order="C"
    )  # an image file has its channels last: five times slower
    scaled /= 255
    normalised = scaled - mean_C11
    normalised /= std_C11
    return torch.from_numpy(normalised)
