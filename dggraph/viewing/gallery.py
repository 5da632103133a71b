"""The images of a page: those of the command line, and those that were dropped on it.

Dropped images are kept in memory as they came, and only so many of them. An image is decoded when
it runs: pixels of the last ones are kept.
"""

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass

from PIL import Image

from dggraph.errors import InputError
from dggraph.models.preprocessing import decode_image
from dggraph.viewing.confinement import Given, read_within, refuse_large

MAX_PIXELS = 32_000_000
"""The largest image; all decoded images that are kept together have no more either."""
MAX_DROPPED, MAX_DROPPED_BYTES = 24, 128 * 2**20
MAX_NAME = 200
SIDE, SMALL = 320, 64
"""Sides of the small image that the page shows, and of images shown with large pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One image of a page."""

    number: int
    """Never given twice."""
    name: str
    """Untrusted text."""
    content: bytes | None
    """The file; None if it is in the folder."""


class Gallery:
    """The images of a page; threads may share it.

    Args:
        given: those of the command line.
    """

    def __init__(self, given: Given | None = None) -> None:
        self._given = given
        names = () if given is None else given.names
        self._entries = {
            number: Entry(number=number, name=name, content=None)
            for number, name in enumerate(names)
        }
        self._next = len(names)
        self._decoded: OrderedDict[int, Image.Image] = OrderedDict()
        self._small: dict[int, bytes] = {}
        self._lock, self._decoding = threading.Lock(), threading.Lock()

    def entries(self) -> tuple[Entry, ...]:
        """Return all images, those of the command line first."""
        with self._lock:
            return tuple(self._entries.values())

    def entry(self, number: int) -> Entry | None:
        """Return an image, or None if there is none of that number."""
        with self._lock:
            return self._entries.get(number)

    def add(self, content: bytes, name: str) -> tuple[Entry, tuple[int, ...]]:
        """Add a dropped image; the oldest dropped ones go if there are too many.

        Args:
            content: the bytes of its file.
            name: what it is called.

        Returns:
            The image, and the numbers of those that went.

        Raises:
            InputError: it is too large, or no image.
        """
        name = name[:MAX_NAME] or "photo"
        refuse_large(content, name)
        with self._lock:
            number, self._next = self._next, self._next + 1
        entry = Entry(number=number, name=name, content=content)
        self._decode(entry)
        with self._lock:
            self._entries[number] = entry
            gone = self._overflowing()
            for one in gone:
                self._entries.pop(one)
                self._small.pop(one, None)
                self._decoded.pop(one, None)
        return entry, gone

    def open(self, entry: Entry) -> Image.Image:
        """Return the image in RGB, upright.

        Raises:
            InputError: it cannot be read any more, or is not an image.
        """
        with self._lock:
            image = self._decoded.get(entry.number)
        return self._decode(entry) if image is None else image

    def thumbnail(self, entry: Entry) -> bytes:
        """Return a small copy as a PNG or JPEG file, PNG for images of a few pixels.

        Raises:
            InputError: as for `open`.
        """
        with self._lock:
            small = self._small.get(entry.number)
        if small is None:
            image = self.open(entry).copy()
            image.thumbnail((SIDE, SIDE))
            stream = io.BytesIO()
            image.save(stream, "PNG" if max(image.size) <= SMALL else "JPEG", quality=88)
            small = stream.getvalue()
            with self._lock:
                self._small[entry.number] = small
        return small

    def _decode(self, entry: Entry) -> Image.Image:
        """Decode an image, one at a time, since each takes up to 200 MB for a moment."""
        with self._decoding:
            content = entry.content
            if content is None:
                assert self._given is not None, "files come from the command line"
                content = read_within(self._given.root, entry.name)
            image = decode_image(content, entry.name, max_pixels=MAX_PIXELS)
            if min(image.size) < 1:
                raise InputError(f"{entry.name!r} has no pixels.")
        with self._lock:
            self._decoded[entry.number] = image
            while sum(one.width * one.height for one in self._decoded.values()) > MAX_PIXELS:
                self._decoded.popitem(last=False)
        return image

    def _overflowing(self) -> tuple[int, ...]:
        dropped = [one for one in self._entries.values() if one.content is not None]
        gone = list[int]()
        while len(dropped) > MAX_DROPPED or (
            sum(len(one.content or b"") for one in dropped) > MAX_DROPPED_BYTES
        ):
            gone.append(dropped.pop(0).number)
        return tuple(gone)
