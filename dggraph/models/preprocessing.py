"""From an image file to the tensor a backbone expects. Image files are hostile: a 48 KB PNG can
hold 400 megapixels.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn
from torchvision.transforms import functional

from dggraph.errors import InputError

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "DIB", "AVIF", "JPEG2000")
"""What is read. Pillow knows others, some of which start programs (EPS: Ghostscript)."""
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")
"""Formats whose mode I holds numbers from 0 to 65,535, and no larger ones."""
FOREIGN = {
    b"version https://git-lfs": "it is a pointer of Git LFS: run `git lfs pull`",
    b"<!doctype html": "it is a web page, saved in place of the image",
    b"<html": "it is a web page, saved in place of the image",
    b"<svg": "it is an SVG drawing: export it as pixels",
    b"<?xml": "it is XML, perhaps an SVG drawing: export it as pixels",
    b"%pdf": "it is a PDF: export its pages as pixels",
}
"""Beginnings, in small letters, of what is often called an image."""


Picturable = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""What can be read as one image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Resize the short side, crop the centre, normalise.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> preprocess = dggraph.Preprocess(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> preprocess(Image.new("RGB", (40, 60))).shape
        torch.Size([1, 3, 32, 32])
    """

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875
    """Crop over resized short side."""
    antialias: bool = True

    def __call__(self, image: "Picturable") -> Tensor:
        """One image, preprocessed: float32 (1, C, H, W).

        Args:
            image: a path, a PIL image, or an array (H, W), (H, W, 1) or (H, W, 3) of uint8.

        Raises:
            InputError: no image, or the network reads neither colour (3) nor grey (1) images.
        """
        return preprocess_image(as_image(image), self)


def require_preprocess(preprocess: Preprocess | None) -> Preprocess:
    """What a network says of its input.

    Raises:
        InputError: it says nothing.
    """
    if preprocess is None:
        raise InputError(
            "this network does not say how images become its input; give --input-size when"
            " converting it."
        )
    return preprocess


def as_image(image: "Picturable") -> Image.Image:
    """A path opened, an array wrapped, a PIL image as it is.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if pixels.dtype != np.uint8 or not (
            pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        ):
            raise InputError(
                f"an array of {image.dtype} {image.shape} is not an image: give uint8 (height,"
                " width, 3), or (height, width) for grey."
            )
        return Image.fromarray(pixels)
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    raise InputError(
        f"{type(image).__name__} is not an image: give a path, a PIL image, or an array of uint8."
    )


def input_size_of(model: nn.Module) -> tuple[int, int, int] | None:
    """Channels, height and width that `model` says it takes: timm's of itself, torchvision's by
    class; None for others.
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        channels, height, width = config["input_size"]
        return channels, height, width
    if type(model).__module__.startswith("torchvision.models."):
        side = (
            299 if type(model).__name__ == "Inception3" else int(getattr(model, "image_size", 224))
        )
        return 3, side, side
    return None


def num_channels_of(model: nn.Module) -> int:
    """Channels that the first convolution of `model` reads; 3 where it has none."""
    return next(
        (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3
    )


def preprocess_of(model: nn.Module, input_size: tuple[int, int, int]) -> Preprocess:
    """What `model` says of itself (timm), else ImageNet's usual; what is not RGB goes to [-1,
    1].
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if input_size[0] != 3:
        return Preprocess(
            input_size=input_size, mean=(0.5,) * input_size[0], std=(0.5,) * input_size[0]
        )
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
        raise InputError(
            f"the network reads {channels} channels; an image file gives 3, or 1 in grey. Make its"
            " input yourself."
        )
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
    batch: Tensor = functional.normalize(
        scaled, mean=list(preprocess.mean), std=list(preprocess.std)
    )[None]
    return batch


def open_image(file: str | os.PathLike[str], *, is_turned: bool = True) -> Image.Image:
    """The first frame of an image file, in RGB.

    Greys of 16 bits are scaled from 0..65,535 to 0..255. Numbers of 32 bits and floats are refused:
    no file says which of them is white.

    Args:
        file: its path.
        is_turned: upright, as its EXIF data say; False leaves it as it is stored.

    Raises:
        InputError: no image, a damaged one, one of a format not in `FORMATS`, of 32-bit numbers, or
            of more than 100 megapixels; names the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata; size is checked here, damage raises
        with opened(file) as image:
            return in_eight_bits(ImageOps.exif_transpose(image) if is_turned else image).convert(
                "RGB"
            )


@contextmanager
def opened(file: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image file whose header has been read and found good; pixels are read within this context.

    Raises:
        InputError: as for `open_image`, within the context too.
    """
    name = repr(os.fspath(file))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would wait for ever
            raise InputError(f"{name} is not a file.")
        with Image.open(file, formats=_readable_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{name} has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS}."
                    " Scale it down."
                )
            if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
                what = (
                    "32-bit floats" if image.mode == "F" else "integers of 32 bits, or with a sign"
                )
                raise InputError(
                    f"{name} holds {what}, and nothing says which of them is black and which is"
                    " white. Save it with 8 or 16 bits, scaled to the range that you mean."
                )
            yield image
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(
            f"{name} is a link to a file that is gone."
            if os.path.islink(file)
            else f"{name} is not there."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that can be read: {_what_it_is(file)}."
        ) from error
    except Exception as error:  # Pillow's readers raise what they like on damaged files
        raise InputError(f"{name} is not an image that can be read: {error}.") from error


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits as 0..255; what has 8 bits as it is."""
    return (
        image.convert("I").point(lambda value: value / 256) if image.mode.startswith("I") else image
    )


@cache
def _readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(one for one in FORMATS if one in Image.OPEN)


def _what_it_is(file: str | os.PathLike[str]) -> str:
    with open(file, "rb") as stream:
        begins = stream.read(64)
    if not begins:
        return "it is empty, 0 bytes"
    known = next(
        (what for start, what in FOREIGN.items() if begins.lstrip().lower().startswith(start)), None
    )
    return known or f"it is damaged, or of another format than {', '.join(_readable_formats())}"
