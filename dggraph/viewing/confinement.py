"""The files that the page may read: those of one folder, or one file, and nothing behind a link.

Names come from the folder alone, never from a request. Each file is checked again when it is read,
since a link may have taken its place meanwhile.
"""

import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from dggraph.data.image_sets import evenly_spaced
from dggraph.data.listing import describe_ignored, scan
from dggraph.errors import InputError

MAX_BYTES = 16 * 2**20
"""The largest image, read from the folder or dropped on the page."""
MAX_LISTED, MAX_GIVEN = 100_000, 120
"""Entries that are looked at, and images that the page shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The images that the command line names."""

    root: Path
    """A folder without links in its path."""
    names: tuple[str, ...]
    """Files within it."""
    notes: tuple[str, ...]
    """What was left out, in sentences."""


def list_given(place: Path) -> Given:
    """Return the images of a folder, at any depth, or one image file.

    Links are left out, to files and to folders, unless `place` itself is one. Of more than 120
    images the page gets 120, evenly spaced.

    Raises:
        InputError: there is nothing at `place`, it cannot be read, or it has no images.
    """
    if not place.exists():
        raise InputError(f"{str(place)!r} does not exist. Give an image, or a folder of images.")
    real = place.resolve()
    if not real.is_dir():
        return Given(root=real.parent, names=(real.name,), notes=())
    names, notes = _walk(real)
    if not names:
        raise InputError(f"{str(place)!r} has no images. {' '.join(notes)}".rstrip())
    is_taken = evenly_spaced(len(names), MAX_GIVEN)
    taken = tuple(name for index, name in enumerate(names) if is_taken(index))
    if len(taken) < len(names):
        notes.append(f"{len(taken)} of {len(names):,} images are shown, evenly spaced.")
    return Given(root=real, names=taken, notes=tuple(notes))


def read_within(root: Path, name: str) -> bytes:
    """Return the content of the file `name` of the folder `root`.

    Args:
        root: a folder without links in its path.
        name: as `list_given` returned it.

    Raises:
        InputError: it is gone, no file, larger than 16 MB, or outside of the folder.
    """
    place = root / name
    try:
        if place.resolve(strict=True) != place or not place.is_relative_to(root):
            raise InputError(f"{name!r} is a link, or leads out of the folder; it is not read.")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(place, flags), "rb") as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{name!r} is not a file.")
            # a folder above it may have become a link between the check and the opening
            if place.resolve(strict=True) != place or not os.path.samestat(facts, place.stat()):
                raise InputError(f"{name!r} changed while it was read; try again.")
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name!r} cannot be read: {error.strerror or error}.") from error
    refuse_large(content, name)
    return content


def refuse_large(content: bytes, name: str) -> None:
    """Refuse a file that is too large.

    Raises:
        InputError: it has more than 16 MB.
    """
    if len(content) > MAX_BYTES:
        raise InputError(
            f"{name!r} has more than {MAX_BYTES // 2**20} MB, the limit of this page. Scale it"
            " down."
        )


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Return the images of a folder, and notes on what was left out."""
    names, notes, folders = list[str](), list[str](), deque([""])
    num_links, num_seen = 0, 0
    while folders and num_seen < MAX_LISTED:
        within = folders.popleft()
        files, inner, ignored = scan(root / within)
        num_seen += len(files) + len(inner)
        for found, target in ((inner, folders), (files, names)):
            for entry in (os.path.join(within, one) for one in found):
                if (root / entry).is_symlink():
                    num_links += 1
                else:
                    target.append(entry)
        if note := describe_ignored(ignored):
            notes.append(f"{within or root.name}: {note}.")
    if num_links:
        notes.append(f"links left out: {num_links}, since they may lead out of the folder.")
    if folders:
        notes.append(f"only the first {MAX_LISTED:,} entries were looked at.")
    return sorted(names[:MAX_LISTED]), notes[-6:]
