"""Checks of image files before any work: their headers, and their ends or all of their pixels.

The header and the last bytes reveal an empty, foreign or truncated file in about 0.1 ms. Damage in
the middle shows only when the complete image is read.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from PIL import ExifTags, Image

from dggraph.errors import InputError
from dggraph.models.preprocessing import opened
from dggraph.system import processes

Depth = Literal["ends", "whole"]
THREADS = 8
TAIL = 64


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The facts in the header of an image file."""

    width: int
    """In pixels, as stored."""
    height: int
    """In pixels, as stored."""
    orientation: int
    """From EXIF: 1 is upright, 2 to 4 keep width and height, 5 to 8 swap them."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as stored."""
        return self.width, self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the rotation that EXIF asks for."""
        return (self.height, self.width) if self.orientation >= 5 else self.size


def inspect_image(file: str | os.PathLike[str], depth: Depth = "ends") -> ImageFacts:
    """Check one image file.

    Args:
        file: its path.
        depth: `ends` reads the header, and pixels only if the end of the file is not as its format
            demands; `whole` reads all pixels.

    Raises:
        InputError: as for `open_image`; with `ends`, damage in the middle is not found.
    """
    with opened(file) as image:
        exif = Image.Image.getexif(image)  # PngImageFile.getexif would read all pixels first
        found = exif.get(ExifTags.Base.Orientation, 1)
        facts = ImageFacts(image.width, image.height, found if found in range(1, 9) else 1)
        if depth == "whole" or not _ends_well(file, image):
            image.load()
        return facts


def inspect_images(
    files: Sequence[str | os.PathLike[str]], depth: Depth = "ends"
) -> list[ImageFacts | InputError]:
    """Check every file. Processes of one run share the work, and each gets all results.

    Args:
        files: their paths.
        depth: as for `inspect_image`.

    Returns:
        For each file the facts in its header, or the error.

    Raises:
        TrainingError: the processes have different numbers of files.
    """
    processes.assert_same_on_all_ranks({"number of image files": len(files)})
    mine = files[processes.rank() :: processes.world_size()]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # odd metadata; set once, since threads share the filters
        found = list(pool.map(partial(_try, depth=depth), mine))
    parts: list[Any] = processes.all_gather_objects(found)
    return [parts[place % len(parts)][place // len(parts)] for place in range(len(files))]


def _try(file: str | os.PathLike[str], depth: Depth) -> ImageFacts | InputError:
    try:
        return inspect_image(file, depth)
    except InputError as error:
        return error


def _ends_well(file: str | os.PathLike[str], image: Image.Image) -> bool:
    length = os.path.getsize(file)
    with open(file, "rb") as stream:
        head = stream.read(TAIL)
        stream.seek(max(0, length - TAIL))
        tail = stream.read()
    ends = ENDS.get(str(image.format))
    return ends is None or ends(image, head, tail, length)


def _strips_are_there(image: Any, _head: bytes, _tail: bytes, length: int) -> bool:
    """Whether all strips (273, 279) or tiles (324, 325) of a TIFF lie within the file."""
    pairs = [
        (image.tag_v2.get(offsets), image.tag_v2.get(sizes))
        for offsets, sizes in ((273, 279), (324, 325))
    ]
    known = [(offsets, sizes) for offsets, sizes in pairs if offsets and sizes]
    return bool(known) and all(
        place + size <= length
        for offsets, sizes in known
        for place, size in zip(offsets, sizes, strict=False)
    )


def _int(content: bytes) -> int:
    return int.from_bytes(content, "little")


ENDS: dict[str, Callable[[Any, bytes, bytes, int], bool]] = {
    "JPEG": lambda image, head, tail, length: b"\xff\xd9" in tail,
    "MPO": lambda image, head, tail, length: b"\xff\xd9" in tail,
    "PNG": lambda image, head, tail, length: b"IEND" in tail,
    "GIF": lambda image, head, tail, length: tail.rstrip(b"\0").endswith(b";"),
    "WEBP": lambda image, head, tail, length: _int(head[4:8]) + 8 <= length,
    "BMP": lambda image, head, tail, length: 0 < _int(head[2:6]) <= length,
    "TIFF": _strips_are_there,
}
"""For each format, whether a file has its full length, from image, first and last bytes and length.

Files of other formats count as complete.
"""
