"""From an image file to the tensor a backbone expects. Image files are hostile: a 48 KB PNG can hold 400 megapixels."""

import os
import stat
import warnings
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms import functional

from dggraph.errors import InputError

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What is read. Pillow knows others, some of which start programs (EPS: Ghostscript)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Resize the short side, crop the centre, normalise."""

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875
    """Crop over resized short side."""
    antialias: bool = True


def input_size_of(model: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width that `model` says it takes: timm's of itself, torchvision's by class; None for others."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        channels, height, width = config["input_size"]
        return channels, height, width
    if type(model).__module__.startswith("torchvision.models."):
        side = 299 if type(model).__name__ == "Inception3" else int(getattr(model, "image_size", 224))
        return 3, side, side
    return None


def num_channels_of(model: nn.Module) -> int:
    """Channels that the first convolution of `model` reads; 3 where it has none."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def preprocess_of(model: nn.Module, input_size: tuple[int, int, int]) -> Preprocess:
    """What `model` says of itself (timm), else ImageNet's usual; what is not RGB goes to [-1, 1]."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if input_size[0] != 3:
        return Preprocess(input_size=input_size, mean=(0.5,) * input_size[0], std=(0.5,) * input_size[0])
    if not isinstance(config, dict):
        return Preprocess(input_size=input_size)
    return Preprocess(
        input_size=input_size,
        mean=tuple(config.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(config.get("std", (0.229, 0.224, 0.225))),
        interpolation=config.get("interpolation", "bicubic"),
        crop_fraction=float(config.get("crop_pct", 0.875)),
    )


def fit_image(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """`image` resized and cropped, in the channels of the network, (C, H, W) uint8.

    Raises:
        InputError: the network reads neither colour (3) nor grey (1) images.
    """
    channels, height, width = preprocess.input_size
    if channels not in (1, 3):
        raise InputError(f"the network reads {channels} channels; an image file gives 3, or 1 in grey. Make its input yourself.")
    resized = functional.resize(
        image.convert("RGB" if channels == 3 else "L"),
        [resized_side(preprocess)],
        interpolation=functional.InterpolationMode(preprocess.interpolation),
        antialias=preprocess.antialias,
    )
    pixels: Tensor = functional.pil_to_tensor(functional.center_crop(resized, [height, width]))
    return pixels


def resized_side(preprocess: Preprocess) -> int:
    """The short side in pixels that an image is resized to before the crop."""
    return int(min(preprocess.input_size[1:]) / preprocess.crop_fraction + 0.5)


def preprocess_image(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """`image` as a float32 batch of one, (1, C, H, W).

    Raises:
        InputError: the network reads neither colour (3) nor grey (1) images.
    """
    scaled = functional.convert_image_dtype(fit_image(image, preprocess), torch.float32)
    batch: Tensor = functional.normalize(scaled, mean=list(preprocess.mean), std=list(preprocess.std))[None]
    return batch


def open_image(file: str | os.PathLike[str], *, is_turned: bool = True) -> Image.Image:
    """The first frame of an image file, in RGB.

    Args:
        file: its path.
        is_turned: upright, as its EXIF data say; False leaves it as it is stored, which is what boxes are drawn on.

    Raises:
        InputError: no image, a damaged one, one of a format not in `FORMATS`, or one of more than 100 megapixels; names the file.
    """
    name = repr(os.fspath(file))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would wait for ever
            raise InputError(f"{name} is no file.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata; size is checked here, damage raises
            with Image.open(file, formats=FORMATS) as opened:
                image: Image.Image = opened
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(f"{name} has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS}. Scale it down.")
                if image.mode.startswith("I"):
                    image = image.convert("I").point(lambda value: value / 256)
                if is_turned:
                    image = ImageOps.exif_transpose(image)
                return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise what they like on damaged files
        raise InputError(f"{name} is no image that can be read: {error}.") from error
