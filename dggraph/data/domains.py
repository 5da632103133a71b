"""Domains: variants of small grey images that differ in five independent attributes.

The attributes are the rotation, whether the image is negative, whether it is a sketch, whether it
lies on a photograph, and whether the object is smaller and in another place. An image is made from
eleven uniform numbers, the same ones in each family, so that two families share the attributes that
both of them vary.

Shape suffixes: N images, S side of a source image, 2 the rows and columns, 11 uniform numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dggraph.errors import InputError

SIDE = 32
"""Height and width of the images that are made."""
NUM_UNIFORMS = 11
BACKGROUND = 15
"""Pixels up to this grey belong to no object: Fashion-MNIST has dim specks around its own."""
SCALES = 0.55, 0.75
"""Range of the side of a scaled object, as a share of that of its source."""
PHOTO_BRIGHTNESS_PERCENT = 70
"""Brightness of a photograph behind an object."""
NUM_VALUES = {"rotation": 4, "negative": 2, "sketch": 2, "photo": 2, "scaled": 2}
"""Number of values of each attribute; rotation counts quarter turns to the left."""


@dataclass(frozen=True, slots=True)
class Domains:
    """A family of domains: which attributes vary, and which are always on."""

    varied: tuple[str, ...] = ()
    always: tuple[str, ...] = ()


FAMILIES = {
    "D0": Domains(),
    "D1": Domains(("rotation",)),
    "D2": Domains(("rotation", "negative", "sketch")),
    "D3": Domains(("rotation", "negative", "sketch", "photo")),
    "D4": Domains(tuple(NUM_VALUES)),
    "H": Domains(always=("photo", "scaled")),
}
"""Families by name: from one domain (D0) to 64 (D4); H is one hard domain."""


def draw_attributes(
    family: Domains, uniforms_N11: NDArray[np.float64]
) -> dict[str, NDArray[np.uint8]]:
    """Return the attributes of each image, (N,) by name.

    Args:
        family: the family of domains.
        uniforms_N11: numbers from 0 to 1, without 1.
    """
    num_images, drawn = len(uniforms_N11), {}
    for place, (name, num_values) in enumerate(NUM_VALUES.items()):
        if name in family.varied:
            drawn[name] = (uniforms_N11[:, place] * num_values).astype(np.uint8)
        else:
            drawn[name] = np.full(num_images, name in family.always, np.uint8)
    return drawn


def render(
    sources_NSS: NDArray[np.uint8],
    attributes: dict[str, NDArray[np.uint8]],
    uniforms_N11: NDArray[np.float64],
    *,
    photos: Sequence[NDArray[np.uint8]] = (),
) -> NDArray[np.uint8]:
    """Return the images, (N, 32, 32).

    An object is turned, scaled and placed, drawn as a sketch, inverted, and pasted on a photograph
    by its mask, in this order. Its mask is where its source is brighter than `BACKGROUND`.

    Args:
        sources_NSS: square grey objects on black, at most 32 pixels wide.
        attributes: the result of `draw_attributes`.
        uniforms_N11: the numbers that it was made from; the last six are the scale, two for the
            place, and three for the patch of a photograph.
        photos: grey pictures (H, W) of at least 32 x 32 pixels.

    Raises:
        InputError: an image needs a photograph, and there are none; or the sources are too large.
    """
    num_images, side = len(sources_NSS), sources_NSS.shape[-1]
    if side > SIDE or sources_NSS.shape[1] != side:
        raise InputError(
            f"objects have {sources_NSS.shape[1]} x {side} pixels, and are placed on {SIDE} x"
            f" {SIDE}. Give square ones that are not larger."
        )
    if attributes["photo"].any() and not photos:
        raise InputError("objects are pasted on photographs, and there are none. Give photos.")
    images = np.zeros((num_images, SIDE, SIDE), np.uint8)
    masks = np.zeros((num_images, SIDE, SIDE), bool)
    for number, source in enumerate(sources_NSS):
        top, left = ((SIDE - side) // 2,) * 2
        turned = np.rot90(source, attributes["rotation"][number])
        mask = turned > BACKGROUND
        if attributes["scaled"][number]:
            turned, mask, (top, left) = _scaled(turned, mask, uniforms_N11[number, 5:8])
        place = slice(top, top + len(turned)), slice(left, left + len(turned))
        images[number][place], masks[number][place] = turned, mask
    is_sketch, is_negative = attributes["sketch"] > 0, attributes["negative"] > 0
    images[is_sketch] = sketch(images[is_sketch])
    images[is_negative] = 255 - images[is_negative]
    for number in np.flatnonzero(attributes["photo"]).tolist():
        patch = _patch(photos, uniforms_N11[number, 8:11])
        images[number] = np.where(masks[number], images[number], patch)
    return images


def sketch(images_NHW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the Sobel magnitude of each image over its own maximum, from 0 to 255."""
    padded = np.pad(images_NHW.astype(np.float32), ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across, down = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    magnitude = np.sqrt(across**2 + down**2)
    largest = np.maximum(magnitude.max((1, 2), keepdims=True), np.float32(1))
    shares: NDArray[np.float32] = magnitude / largest
    return np.rint(255 * shares).astype(np.uint8)


def _scaled(
    source: NDArray[np.uint8], mask: NDArray[np.bool_], uniforms: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[int, int]]:
    """Return a smaller object, its mask, and the row and column of its corner."""
    low, high = SCALES
    side = round(len(source) * (low + (high - low) * float(uniforms[0])))
    small, small_mask = (
        np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
        for pixels in (np.ascontiguousarray(source), mask * np.uint8(255))
    )
    top, left = (int(float(one) * (SIDE - side + 1)) for one in uniforms[1:])
    return small, small_mask >= 128, (top, left)


def _patch(photos: Sequence[NDArray[np.uint8]], uniforms: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return a darkened patch of one of the photographs."""
    photo = photos[int(float(uniforms[0]) * len(photos))]
    top, left = (
        int(float(one) * (length - SIDE + 1))
        for one, length in zip(uniforms[1:], photo.shape, strict=True)
    )
    patch = photo[top : top + SIDE, left : left + SIDE].astype(np.uint16)
    return ((patch * PHOTO_BRIGHTNESS_PERCENT + 50) // 100).astype(np.uint8)
