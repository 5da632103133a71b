"""From an image file to the input tensor of a backbone.

Image files may be hostile: a PNG of 48 KB can hold 400 megapixels.
"""

import io
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
from dggraph.system.paths import locate

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "DIB", "AVIF", "JPEG2000")
"""Formats that are read. Pillow supports more, and some start programs (EPS: Ghostscript)."""
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")
"""Formats in which mode I holds numbers from 0 to 65,535 only."""
FOREIGN = {
    b"version https://git-lfs": "it is a pointer of Git LFS: run `git lfs pull`",
    b"<!doctype html": "it is a web page, saved in place of the image",
    b"<html": "it is a web page, saved in place of the image",
    b"<svg": "it is an SVG drawing: export it as pixels",
    b"<?xml": "it is XML, perhaps an SVG drawing: export it as pixels",
    b"%pdf": "it is a PDF: export its pages as pixels",
}
"""First bytes, in lower case, of files that are often mistaken for images."""
BEGINS = 64
"""How many first bytes of a file are looked at to say what it is instead."""


Picturable = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | Tensor
"""Everything that can be read as one image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """Resize the short side, crop the centre and normalise.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> half = (0.5, 0.5, 0.5)
        >>> preprocess = dggraph.Preprocess(input_size=(3, 32, 32), mean=half, std=half)
        >>> preprocess(Image.new("RGB", (40, 60))).shape
        torch.Size([1, 3, 32, 32])
    """

    input_size: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875
    """Side of the crop as a fraction of the resized short side."""
    antialias: bool = True

    def __call__(self, image: "Picturable") -> Tensor:
        """Preprocess one image to float32 (1, C, H, W).

        Args:
            image: a path, a PIL image, a uint8 array (H, W), (H, W, 1) or (H, W, 3), or a tensor
                (1, H, W) or (3, H, W) of uint8 or of floats from 0 to 1.

        Raises:
            InputError: `image` cannot be read as an image, or the network reads neither colour (3
                channels) nor grey (1) images.
        """
        return preprocess_image(as_image(image), self)


def require_preprocess(preprocess: Preprocess | None) -> Preprocess:
    """Return `preprocess`, which must not be None.

    Raises:
        InputError: it is None.
    """
    if preprocess is None:
        raise InputError(
            "this network does not say how images become its input; convert it with --input-size,"
            " or give a `Preprocess`."
        )
    return preprocess


def as_image(image: "Picturable") -> Image.Image:
    """Open a path, wrap an array or a tensor, or return a PIL image, unturned, in 8 bits.

    Raises:
        InputError: `image` is none of these, or cannot be read, as for `open_image`.
    """
    if isinstance(image, Image.Image):
        _refuse_unscaled(image, "the image")
        return in_eight_bits(image)
    if isinstance(image, np.ndarray):
        pixels = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if pixels.dtype != np.uint8 or not (
            pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        ):
            raise InputError(
                f"an array of dtype {image.dtype} and shape {image.shape} is not an image: give"
                " uint8 (height, width, 3), or (height, width) for grey."
            )
        return Image.fromarray(pixels)
    if isinstance(image, Tensor):
        return _tensor_as_image(image)
    if isinstance(image, str | os.PathLike):
        return open_image(locate(image))
    raise InputError(
        f"{type(image).__name__} is not an image: give a path, a PIL image, a uint8 array or a"
        " tensor (C, H, W)."
    )


def _tensor_as_image(image: Tensor) -> Image.Image:
    is_image = image.ndim == 3 and image.shape[0] in (1, 3) and image.numel() > 0
    if not is_image or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise InputError(
            f"a tensor of {image.dtype} and shape {tuple(image.shape)} is not an image: give uint8"
            " or floats from 0 to 1, (3, height, width) or, for grey, (1, height, width)."
        )
    if image.is_floating_point() and not (image.min() >= 0 and image.max() <= 1):
        raise InputError(
            f"the tensor has values from {float(image.min()):.3g} to {float(image.max()):.3g}, and"
            " pixels go from 0 to 1: give the image as it was before it was normalised, or call the"
            " network itself with a batch."
        )
    picture: Image.Image = functional.to_pil_image(image.detach().cpu())
    return picture


def input_size_of(model: nn.Module) -> tuple[int, int, int] | None:
    """Return the channels, height and width that `model` declares, or None.

    timm's models have a configuration; torchvision's are recognised by their class.
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
    """Return the input channels of the first convolution of `model`; 3 if it has none."""
    return next(
        (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3
    )


def preprocess_of(model: nn.Module, input_size: tuple[int, int, int]) -> Preprocess:
    """Return the preprocessing that `model` declares (timm), else that of ImageNet.

    Images that are not RGB are normalised to [-1, 1].
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
    """Resize and crop `image` to (C, H, W) uint8, with the channels of the network.

    Raises:
        InputError: the network reads neither colour (3 channels) nor grey (1) images.
    """
    channels, height, width = preprocess.input_size
    if channels not in (1, 3):
        raise InputError(
            f"the network reads {channels} channels, but an image file gives 3, or 1 in grey. Build"
            " the input tensor yourself."
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
    """Return the length in pixels of an image's short side after resizing, before the crop."""
    return int(min(preprocess.input_size[1:]) / preprocess.crop_fraction + 0.5)


def preprocess_image(image: Image.Image, preprocess: Preprocess) -> Tensor:
    """Preprocess `image` to a float32 batch of one, (1, C, H, W).

    Raises:
        InputError: the network reads neither colour (3 channels) nor grey (1) images.
    """
    scaled = functional.convert_image_dtype(fit_image(image, preprocess), torch.float32)
    batch: Tensor = functional.normalize(
        scaled, mean=list(preprocess.mean), std=list(preprocess.std)
    )[None]
    return batch


def open_image(file: str | os.PathLike[str], *, is_turned: bool = True) -> Image.Image:
    """Read the first frame of an image file in RGB.

    Greys of 16 bits are scaled from 0..65,535 to 0..255. Integers of 32 bits and floats are
    rejected, because no file says which value is white.

    Args:
        file: its path.
        is_turned: rotate the image upright, as its EXIF data say; False keeps it as stored.

    Raises:
        InputError: the file is not an image, is damaged, has a format that is not in `FORMATS`,
            holds 32-bit numbers, or has more than 100 megapixels; names the file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata; size is checked here, and damage raises
        with opened(file) as image:
            return _upright(image) if is_turned else in_eight_bits(image).convert("RGB")


def decode_image(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the first frame of an image in RGB, upright, from the content of a file.

    Args:
        content: the bytes of the file.
        name: what errors call it.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        InputError: as for `open_image`; names `name`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        with _identified(io.BytesIO(content), repr(name), content[:BEGINS], max_pixels) as image:
            return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
    return in_eight_bits(ImageOps.exif_transpose(image)).convert("RGB")


@contextmanager
def opened(file: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """Open an image file after checking its header; pixels are read within this context.

    Raises:
        InputError: as for `open_image`, within the context too.
    """
    name = repr(os.fspath(file))
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # reading a pipe would block
            raise InputError(f"{name} is not a file.")
        with open(file, "rb") as stream:
            begins = stream.read(BEGINS)
    except FileNotFoundError as error:
        raise InputError(
            f"{name} is a link to a file that does not exist."
            if os.path.islink(file)
            else f"{name} does not exist."
        ) from error
    except OSError as error:
        raise InputError(f"{name} is not an image that can be read: {error}.") from error
    with _identified(file, name, begins, MAX_PIXELS) as image:
        yield image


@contextmanager
def _identified(
    source: str | os.PathLike[str] | io.BytesIO, name: str, begins: bytes, max_pixels: int
) -> Iterator[Image.Image]:
    """Open what `source` holds after checking its header; `name` is quoted already."""
    try:
        with Image.open(source, formats=_readable_formats()) as image:
            if image.width * image.height > max_pixels:
                raise InputError(
                    f"{name} has {image.width}x{image.height} pixels; the limit is {max_pixels}."
                    " Scale it down."
                )
            _refuse_unscaled(image, name)
            yield image
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not an image that can be read: {_what_it_is(begins)}."
        ) from error
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        raise InputError(
            f"{name} is not an image that can be read: {str(error).rstrip('.')}."
        ) from error


def _refuse_unscaled(image: Image.Image, name: str) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS):
        what = "32-bit floats" if image.mode == "F" else "integers of 32 bits, or signed ones"
        raise InputError(
            f"{name} holds {what}, and does not say which value is black and which is white. Scale"
            " it to the range that you mean, in 8 or 16 bits."
        )


def in_eight_bits(image: Image.Image) -> Image.Image:
    """Scale greys of 16 bits to 0..255; return images of 8 bits unchanged."""
    return (
        image.convert("I").point(lambda value: value / 256) if image.mode.startswith("I") else image
    )


@cache
def _readable_formats() -> tuple[str, ...]:
    """The subset of `FORMATS` that this build of Pillow supports."""
    Image.init()
    return tuple(one for one in FORMATS if one in Image.OPEN)


def _what_it_is(begins: bytes) -> str:
    if not begins:
        return "it is empty, 0 bytes"
    known = next(
        (what for start, what in FOREIGN.items() if begins.lstrip().lower().startswith(start)), None
    )
    return known or f"it is damaged, or its format is not one of {', '.join(_readable_formats())}"
