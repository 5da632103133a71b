"""Fashion-MNIST in several domains: a data set whose diversity can be chosen.

Every image of Fashion-MNIST is drawn twice, in domains of a family (see `domains`). The official
split stays, so no source is in both parts, and photographs behind objects come from the left halves
of scikit-image's pictures for training and from their right halves for validation. The set follows
from its inputs and a fixed seed, and is kept in a file in the user's cache whose name changes with
any of them.
"""

import importlib.util
import json
import warnings
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image

from dggraph.data.domains import FAMILIES, NUM_UNIFORMS, NUM_VALUES, SIDE, draw_attributes, render
from dggraph.data.pixels import Pixels, PixelSet, read_pixels
from dggraph.errors import DggraphWarning, InputError, MissingExtraError
from dggraph.models.preprocessing import open_image
from dggraph.system.files import write_whole
from dggraph.system.paths import cache_folder

RECIPE = 1
"""Number of the recipe; another one makes other images."""
SEEDS = {"train": 0, "validation": 1}
NUM_DRAWS = 2
"""Images made from each source."""
PHOTOS = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon",
    "motorcycle_left",
)  # fmt: skip
"""Photographs of scikit-image in PNG, whose pixels are the same whatever reads them."""
CHUNK = 2000
"""Images that are made at a time, which bounds the memory."""
PHOTO_SIDE = 128
"""Shorter side of the photographs, in pixels, before they are cut into halves."""

Arrays = dict[str, NDArray[np.uint8]]


def read_diverse_fashion(folder: Path | None, domains: str) -> PixelSet:
    """Return the set of one family of domains, with the attributes of each image.

    It is read from the user's cache, or made and stored there, which takes about ten seconds.

    Args:
        folder: the folder of Fashion-MNIST; None is where Debian's package puts it.
        domains: a name in `domains.FAMILIES`.

    Raises:
        InputError: there is no such family, or files of Fashion-MNIST are missing or damaged.
        MissingExtraError: the family needs photographs, and scikit-image is not installed.
    """
    if domains not in FAMILIES:
        raise InputError(
            f"domains = {domains!r}: there is no such family. Choose from {', '.join(FAMILIES)}."
        )
    sources = read_pixels("fashion_mnist", folder)
    halves = read_halves() if "photo" in _used(domains) else dict.fromkeys(SEEDS, ())
    parts = {"train": sources.train, "validation": sources.validation}
    file = cache_folder() / "diverse_fashion" / f"{domains}-{_digest(domains, parts, halves)}"
    arrays = _read(file)
    if arrays is None:
        arrays = {
            f"{part}.{name}": array
            for part, pixels in parts.items()
            for name, array in make_part(domains, pixels, halves[part], seed=SEEDS[part]).items()
        }
        _store(file, arrays)
    train, validation = (_pixels(arrays, part) for part in SEEDS)
    return PixelSet(train, validation, sources.classes)


def make_part(
    domains: str, sources: Pixels, photos: tuple[NDArray[np.uint8], ...], *, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """Return `images` (N, 32, 32), `labels` (N,), and the attributes (N,) by name.

    N is twice the number of sources; images 2 i and 2 i + 1 are of source i.
    """
    repeated = np.arange(len(sources.labels)).repeat(NUM_DRAWS)
    uniforms = draw_uniforms(len(repeated), seed)
    attributes = draw_attributes(FAMILIES[domains], uniforms)
    images = np.empty((len(repeated), SIDE, SIDE), np.uint8)
    for start in range(0, len(repeated), CHUNK):
        part = slice(start, start + CHUNK)
        images[part] = render(
            sources.images_NHWC[repeated[part], :, :, 0],
            {name: values[part] for name, values in attributes.items()},
            uniforms[part],
            photos=photos,
        )
    labels = np.array(sources.labels, np.uint8)[repeated]
    return {"images": images, "labels": labels, **attributes}


def draw_uniforms(num_images: int, seed: int) -> NDArray[np.float64]:
    """Return (num_images, 11) numbers from 0 to 1, without 1.

    They are made from the raw bits of PCG64: numpy keeps those, but not what its distributions make
    of them.
    """
    bits = np.random.PCG64(seed).random_raw(num_images * NUM_UNIFORMS)
    return (bits >> np.uint64(11)).astype(np.float64).reshape(num_images, NUM_UNIFORMS) * 2.0**-53


def read_halves() -> dict[str, tuple[NDArray[np.uint8], ...]]:
    """Return the left halves of the photographs for training, and the right ones for validation.

    Raises:
        MissingExtraError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    places = () if found is None else found.submodule_search_locations or ()
    folders = [Path(place) / "data" for place in places]
    if not folders:
        raise MissingExtraError(
            "these domains paste objects on scikit-image's photographs: pip install"
            " 'dggraph[photos]'. D0, D1 and D2 do without."
        )
    halves: dict[str, list[NDArray[np.uint8]]] = {part: [] for part in SEEDS}
    for name in PHOTOS:
        photo = open_image(folders[0] / f"{name}.png").convert("L")
        factor = PHOTO_SIDE / min(photo.size)
        width, height = (round(factor * length) for length in photo.size)
        pixels = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS))
        halves["train"].append(pixels[:, : width // 2])
        halves["validation"].append(pixels[:, width - width // 2 :])
    return {part: tuple(pictures) for part, pictures in halves.items()}


def _used(domains: str) -> tuple[str, ...]:
    return FAMILIES[domains].varied + FAMILIES[domains].always


def _digest(
    domains: str, parts: Mapping[str, Pixels], halves: Mapping[str, tuple[NDArray[np.uint8], ...]]
) -> str:
    """Return a digest of everything that the set is made from."""
    recipe = [RECIPE, domains, repr(FAMILIES[domains]), SEEDS, NUM_DRAWS]
    digest = blake2b(json.dumps(recipe).encode(), digest_size=8)
    for part, pixels in parts.items():
        for array in (pixels.images_NHWC, np.array(pixels.labels, np.uint8), *halves[part]):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _pixels(arrays: Arrays, part: str) -> Pixels:
    images_NHWC = arrays[f"{part}.images"][..., None]
    attributes = {name: arrays[f"{part}.{name}"] for name in NUM_VALUES}
    return Pixels(images_NHWC, arrays[f"{part}.labels"].tolist(), attributes)


def _read(file: Path) -> Arrays | None:
    """Return the arrays of a file: a line with a digest of the rest, and safetensors.

    The result is None if the file is missing or damaged.
    """
    try:
        seal, _, content = file.read_bytes().partition(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if blake2b(content).hexdigest().encode() == seal:
        return safetensors.numpy.load(content)
    warnings.warn(
        f"{file} differs from its digest, so it is damaged, and the data set is made again.",
        DggraphWarning,
        stacklevel=3,
    )
    return None


def _store(file: Path, arrays: Arrays) -> None:
    """Write the arrays atomically; two processes that do so at once write the same bytes."""
    content = safetensors.numpy.save(arrays)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, blake2b(content).hexdigest().encode() + b"\n" + content)
    except (OSError, InputError) as error:
        warnings.warn(
            f"the data set is not kept, and will be made again next time: {error} Set"
            " XDG_CACHE_HOME to a folder that can be written.",
            DggraphWarning,
            stacklevel=3,
        )
