"""Image files looked at before any work: what their headers say, and whether they end where they
should; or read whole, where that is wanted.

A header and the last bytes of a file tell an empty, foreign or truncated one in about a tenth of a
millisecond. Damage in the middle shows only when the whole image is read.
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
    """What the header of an image file says."""

    width: int
    """As it is stored."""
    height: int
    orientation: int
    """EXIF: 1 is upright, 2 to 4 keep the size when turned, 5 to 8 swap its sides."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as it is stored."""
        return self.width, self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height once it is turned as EXIF says."""
        return (self.height, self.width) if self.orientation >= 5 else self.size


def inspect_image(file: str | os.PathLike[str], depth: Depth = "ends") -> ImageFacts:
    """Look at one file.

    Args:
        file: its path.
        depth: `ends` reads the header, and pixels only where the file does not end as files of its
            format do; `whole` reads all.

    Raises:
        InputError: as for `open_image`; with `ends` not for damage in the middle.
    """
    with opened(file) as image:
        exif = Image.Image.getexif(image)  # of a PNG its own would read all pixels first
        found = exif.get(ExifTags.Base.Orientation, 1)
        facts = ImageFacts(image.width, image.height, found if found in range(1, 9) else 1)
        if depth == "whole" or not _ends_well(file, image):
            image.load()
        return facts


def inspect_images(
    files: Sequence[str | os.PathLike[str]], depth: Depth = "ends"
) -> list[ImageFacts | InputError]:
    """Look at every file; several processes share them, and all get all answers.

    Args:
        files: their paths.
        depth: as for `inspect_image`.

    Returns:
        For each file what its header says, or what is wrong with it.

    Raises:
        TrainingError: the processes see another number of files.
    """
    processes.assert_same_on_all_ranks({"number of image files": len(files)})
    mine = files[processes.rank() :: processes.world_size()]
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # of odd metadata; here, since threads share the filters
        found = list(pool.map(partial(_try, depth=depth), mine))
    told: list[Any] = processes.all_gather_objects(found)
    return [told[place % len(told)][place // len(told)] for place in range(len(files))]


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
    """TIFF: strips (273, 279) or tiles (324, 325) of pixels lie within the file."""
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
"""Whether a file is as long as it should be: from image, first bytes, last bytes and length. Other
formats are not looked at.
"""
