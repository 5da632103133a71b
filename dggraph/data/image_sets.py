"""Image sets, read one image at a time: folders, folders per class, or files in MNIST's format.

Names are read twice, once to count and fingerprint the set and once to use it. Only the names of
one class are in memory at a time.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from unicodedata import normalize

from PIL import Image

from dggraph.data.idx import check_idx, read_idx, rows_of
from dggraph.data.listing import SUFFIXES, describe_ignored, list_images, num_files, scan
from dggraph.errors import InputError
from dggraph.models.preprocessing import open_image
from dggraph.system.paths import locate

PARTS = ("t10k", "test", "train")
"""Prefixes of MNIST's file names; the first one that exists is used."""
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a set, not read yet."""

    index: int
    """Its place in the set."""
    name: str
    """Its name within the set, for example `cat/7.jpg`."""
    label: int | None
    """Its class, an index into `ImageSet.classes`."""
    open: Callable[[], Image.Image]
    """Reads the image; raises an InputError that names the file if it cannot be read."""
    file: str | None = None
    """Its file, or None for an image inside a larger file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images in a fixed order."""

    name: str
    classes: tuple[str, ...]
    """Class names, composed (NFC) however the disk stores them; empty without classes."""
    num_images: int
    ignored: Mapping[str, int] = field(default_factory=dict)
    """The number of files and folders that were left out, by reason (see `listing`)."""
    empty: tuple[str, ...] = ()
    """Folders next to those of the classes that have no image."""
    fingerprint: str
    """A hash that changes with names, sizes and times of the files."""
    items: Callable[[], Iterator[Item]]
    """Starts a new pass over the set."""

    @property
    def num_ignored(self) -> int:
        """The number of files that were left out."""
        return num_files(self.ignored)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence per kind of file or folder that was left out."""
        notes = [describe_ignored(self.ignored)] if self.ignored else []
        if self.empty:
            notes.append(f"folders without an image: {list_some(self.empty)}")
        return tuple(notes)


def open_image_set(path: str | os.PathLike[str], labels: Sequence[str] | None = None) -> ImageSet:
    """Open the image set at `path`.

    Args:
        path: a folder of images; a folder whose sub-folders are classes; an images file in MNIST's
            format (idx3-ubyte, with or without .gz) next to its labels file; or a folder with such
            files, of which the test part is read.
        labels: class names for MNIST's format, which has numbers only. Without them, or if their
            number differs, the names are `class 0` and so on. A folder whose name is one of them in
            another Unicode composition (NFC, NFD) takes the spelling given here.

    Raises:
        InputError: nothing at `path` can be read; says what was found.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> Image.new("RGB", (40, 40)).save("grey.png")
        >>> dggraph.evaluation.open_image_set(".").num_images
        1
    """
    place = locate(path)
    if place.is_dir():
        found = [
            file
            for part in PARTS
            for file in sorted(place.glob(f"{part}-images-idx3-ubyte*"))
            if file.is_file()
        ]
        return _open_idx(found[0], labels) if found else _open_folder(place, labels or ())
    if place.is_file() and "-images-idx3" in place.name:
        return _open_idx(place, labels)
    what = (
        "a file, but not an images file in MNIST's format (NAME-images-idx3-ubyte.gz)"
        if place.is_file()
        else "neither a folder nor a file"
    )
    raise InputError(
        f"{str(place)!r} is {what}. Give a folder of images, a folder with a sub-folder for each"
        " class, or MNIST's files."
    )


def evenly_spaced(num_images: int, limit: int | None) -> Callable[[int], bool]:
    """Return which of `num_images` places to take: all, or `limit` of them, evenly spaced."""
    if limit is None or limit >= num_images:
        return lambda _: True
    return lambda index: (index + 1) * limit // num_images > index * limit // num_images


def list_some(names: Sequence[str]) -> str:
    """Return the first names, quoted, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(name) for name in names[:SHOWN]) + more


def _open_folder(folder: Path, labels: Sequence[str]) -> ImageSet:
    loose, folders, ignored = scan(folder)
    digest, number, kept, empty = blake2b(digest_size=16), 0, list[str](), list[str]()
    for name in folders if not loose else [*folders, ""]:
        names, left_out = _members(folder, name) if name else (loose, Counter[str]())
        (kept if names else empty).append(name)
        ignored, number = ignored + left_out, number + len(names)
        for inner in names:
            place = os.path.join(name, inner)
            facts = _facts(folder / place)
            digest.update(
                f"{place}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape")
            )
    classes = [name for name in kept if name]
    if loose and classes:
        raise InputError(
            f"{str(folder)!r} has both images and folders of images ({loose[0]!r} and"
            f" {classes[0]!r}), so the classes are unclear. Move one or the other."
        )
    if not number:
        told = f" {describe_ignored(ignored)}." if ignored else ""
        raise InputError(
            f"{str(folder)!r} has no images: no files ending in"
            f" {', '.join(sorted(SUFFIXES))}.{told}"
        )
    return ImageSet(
        name=folder.resolve().name or str(folder),
        classes=_class_names(folder, classes, labels),
        num_images=number,
        ignored=ignored,
        empty=tuple(empty),
        fingerprint=digest.hexdigest(),
        items=partial(_folder_items, folder, classes),
    )


def _facts(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError:  # a broken link counts as an image that cannot be read
        return file.lstat()


def _members(folder: Path, name: str) -> tuple[list[str], Counter[str]]:
    return list_images(folder / name, above=[folder])


def _folder_items(folder: Path, classes: Sequence[str]) -> Iterator[Item]:
    places = (
        (
            (os.path.join(name, inner), label)
            for label, name in enumerate(classes)
            for inner in _members(folder, name)[0]
        )
        if classes
        else ((name, None) for name in scan(folder)[0])
    )
    for index, (place, label) in enumerate(places):
        file = os.path.join(folder, place)
        yield Item(index, place, label, partial(open_image, file), file)


def _class_names(folder: Path, names: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Return class names in the spelling of `labels`.

    macOS decomposes letters (NFD) that other systems compose; the class stays the same.
    """
    known = {composed(label): label for label in labels}
    called = Counter(composed(name) for name in names)
    twice = next((name for name, number in called.items() if number > 1), None)
    if twice is not None:
        raise InputError(
            f"two folders in {str(folder)!r} are called {twice!r}, in different Unicode"
            " compositions. Merge them."
        )
    return tuple(known.get(name, name) for name in called)


def composed(name: str) -> str:
    """Return `name` in the composed spelling (NFC), which all systems except macOS use."""
    return normalize("NFC", name)


def _open_idx(file: Path, labels: Sequence[str] | None) -> ImageSet:
    beside = file.with_name(file.name.replace("-images-idx3", "-labels-idx1"))
    digest = blake2b(digest_size=16)
    number, height, width = shape = check_idx(file, 3)
    if not number * height * width:
        raise InputError(
            f"{file} has {number} images of {width}x{height} pixels, so there is nothing to read."
            " Check that it is the right file."
        )
    classes: tuple[str, ...] = ()
    if beside.is_file():
        labels_N = read_idx(beside, 1)
        if len(labels_N) != number:
            raise InputError(
                f"{str(beside)!r} has {len(labels_N)} labels for {number} images, so the files do"
                " not belong together. Copy both again from one place."
            )
        num_classes = int(labels_N.max()) + 1 if number else 0
        fits = labels is not None and len(labels) == num_classes
        classes = (
            tuple(labels or ()) if fits else tuple(f"class {index}" for index in range(num_classes))
        )
    for part in (file, beside):
        if part.is_file():
            digest.update(
                f"{part.name}\0{part.stat().st_size}\0{part.stat().st_mtime_ns}\0".encode(
                    errors="surrogateescape"
                )
            )
    return ImageSet(
        name=f"{file.resolve().parent.name} {file.name.partition('-')[0]}",
        classes=classes,
        num_images=number,
        fingerprint=digest.hexdigest(),
        items=partial(_idx_items, file, beside if classes else None, shape),
    )


def _idx_items(file: Path, beside: Path | None, shape: tuple[int, ...]) -> Iterator[Item]:
    labels = None if beside is None else read_idx(beside, 1).tolist()
    part, (_, height, width) = file.name.partition("-")[0], shape
    for index, pixels in enumerate(rows_of(file, shape)):
        opened = partial(Image.frombytes, "L", (width, height), pixels)
        yield Item(index, f"{part} {index}", None if labels is None else labels[index], opened)
