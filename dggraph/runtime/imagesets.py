"""Sets of images, read one at a time: a folder of images, a folder with one sub-folder a class, or files in MNIST's format.

Names are read twice, once to count and fingerprint the set and once to use it, and only those of one folder are held at a time.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BufferedIOBase
from pathlib import Path

from PIL import Image

from dggraph.errors import InputError
from dggraph.runtime.preprocessing import MAX_PIXELS, open_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
PARTS = ("t10k", "test", "train")
"""Beginnings of MNIST's file names; the first one there is used."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a set, not yet read."""

    index: int
    """Its place in the set."""
    name: str
    """Within the set, for example `cat/7.jpg`."""
    label: int | None
    """Its class, an index into `ImageSet.classes`."""
    open: Callable[[], Image.Image]
    """Reads it; raises InputError naming the file where it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Images in a fixed order."""

    name: str
    classes: tuple[str, ...]
    """Class names; empty where images have none."""
    num_images: int
    num_ignored: int
    """Files without an image's suffix."""
    fingerprint: str
    """Changes with names, sizes and times of the files."""
    items: Callable[[], Iterator[Item]]
    """A new pass over the set."""


def open_image_set(path: str | os.PathLike[str], labels: Sequence[str] | None = None) -> ImageSet:
    """Find out what is at `path`.

    Args:
        path: a folder of images; a folder whose sub-folders are classes; an images file in MNIST's format (idx3-ubyte, with or
            without .gz), whose labels file lies beside it; or a folder with such files, of which the test part is read.
        labels: class names for MNIST's format, which has numbers; where their number is another one, and by default, `class 0` and so on.

    Raises:
        InputError: nothing there that can be read; says what was found.
    """
    place = Path(os.fsdecode(path))
    if place.is_dir():
        found = [file for part in PARTS for file in sorted(place.glob(f"{part}-images-idx3-ubyte*")) if file.is_file()]
        return _open_idx(found[0], labels) if found else _open_folder(place)
    if place.is_file() and "-images-idx3" in place.name:
        return _open_idx(place, labels)
    what = "a file, but no images file in MNIST's format (NAME-images-idx3-ubyte.gz)" if place.is_file() else "not there"
    raise InputError(f"{place} is {what}. Give a folder of images, a folder with a sub-folder for each class, or MNIST's files.")


def spread(num_images: int, limit: int | None) -> Callable[[int], bool]:
    """Which of `num_images` places to take: all, or `limit` of them evenly spread."""
    if limit is None or limit >= num_images:
        return lambda _: True
    return lambda index: (index + 1) * limit // num_images > index * limit // num_images


def _open_folder(folder: Path) -> ImageSet:
    files, ignored, folders = _list(folder)
    classes = tuple(name for name in folders if next(_walk(folder / name), None) is not None)
    if files and classes:
        raise InputError(
            f"{folder} has images beside folders of images ({files[0]!r} and {classes[0]!r}), so classes are unclear. Move one or the other."
        )
    if not files and not classes:
        raise InputError(f"{folder} has no images: no files ending in {', '.join(sorted(SUFFIXES))}.")
    digest, number = blake2b(digest_size=16), 0
    ignored += sum(_count_ignored(folder / name) for name in classes)
    for name, _ in _members(folder, classes):
        facts = (folder / name).stat()
        digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="surrogateescape"))
        number += 1
    return ImageSet(
        name=folder.resolve().name or str(folder),
        classes=classes,
        num_images=number,
        num_ignored=ignored,
        fingerprint=digest.hexdigest(),
        items=partial(_folder_items, folder, classes),
    )


def _folder_items(folder: Path, classes: tuple[str, ...]) -> Iterator[Item]:
    for index, (name, label) in enumerate(_members(folder, classes)):
        yield Item(index, name, label, partial(open_image, folder / name))


def _members(folder: Path, classes: tuple[str, ...]) -> Iterator[tuple[str, int | None]]:
    if not classes:
        yield from ((name, None) for name in _list(folder)[0])
    for label, name in enumerate(classes):
        yield from ((f"{name}/{inner}", label) for inner in _walk(folder / name))


def _walk(folder: Path) -> Iterator[str]:
    """Images at any depth; links to folders are not followed below a class, so there are no circles."""
    files, _, folders = _list(folder)
    yield from files
    for name in folders:
        if not (folder / name).is_symlink():
            yield from (f"{name}/{inner}" for inner in _walk(folder / name))


def _count_ignored(folder: Path) -> int:
    _, ignored, folders = _list(folder)
    return ignored + sum(_count_ignored(folder / name) for name in folders if not (folder / name).is_symlink())


def _list(folder: Path) -> tuple[list[str], int, list[str]]:
    """Images, the number of other files, and folders of `folder`, sorted. Hidden ones and what is no plain file (pipes) count as others."""
    files, folders, ignored = [], [], 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir() and not entry.name.startswith("."):
                folders.append(entry.name)
            elif entry.is_file() and not entry.name.startswith(".") and Path(entry.name).suffix.lower() in SUFFIXES:
                files.append(entry.name)
            elif not entry.is_dir():
                ignored += 1
    except OSError as error:
        raise InputError(f"cannot read the folder {str(folder)!r}: {error.strerror or error}.") from error
    return sorted(files), ignored, sorted(folders)


def _open_idx(file: Path, labels: Sequence[str] | None) -> ImageSet:
    beside = file.with_name(file.name.replace("-images-idx3", "-labels-idx1"))
    digest = blake2b(digest_size=16)
    with _reading(file) as stream:
        number, height, width = _header(file, stream, IMAGES_MAGIC, 3)
    if not 0 < height * width <= MAX_PIXELS:
        raise InputError(f"{str(file)!r} says that its images are {width}x{height} pixels; the limit is {MAX_PIXELS}.")
    classes: tuple[str, ...] = ()
    if beside.is_file():
        with _reading(beside) as stream:
            (num_labels,) = _header(beside, stream, LABELS_MAGIC, 1)
            present = sorted(set(_exactly(beside, stream, num_labels)))
        if num_labels != number:
            raise InputError(f"{str(beside)!r} has {num_labels} labels for {number} images; the files do not belong together.")
        num_classes = present[-1] + 1 if present else 0
        fits = labels is not None and len(labels) == num_classes
        classes = tuple(labels or ()) if fits else tuple(f"class {index}" for index in range(num_classes))
    for part in (file, beside):
        if part.is_file():
            digest.update(f"{part.name}\0{part.stat().st_size}\0{part.stat().st_mtime_ns}\0".encode(errors="surrogateescape"))
    return ImageSet(
        name=f"{file.resolve().parent.name} {file.name.partition('-')[0]}",
        classes=classes,
        num_images=number,
        num_ignored=0,
        fingerprint=digest.hexdigest(),
        items=partial(_idx_items, file, beside if classes else None, number, (width, height)),
    )


def _idx_items(file: Path, beside: Path | None, number: int, size: tuple[int, int]) -> Iterator[Item]:
    labels = None
    if beside is not None:
        with _reading(beside) as stream:
            _header(beside, stream, LABELS_MAGIC, 1)
            labels = _exactly(beside, stream, number)
    part = file.name.partition("-")[0]
    with _reading(file) as stream:
        _header(file, stream, IMAGES_MAGIC, 3)
        for index in range(number):
            pixels = _exactly(file, stream, size[0] * size[1])
            yield Item(index, f"{part} {index}", labels[index] if labels else None, partial(Image.frombytes, "L", size, pixels))


def _header(file: Path, stream: BufferedIOBase, magic: int, num_sizes: int) -> tuple[int, ...]:
    found, *sizes = struct.unpack(f">{num_sizes + 1}I", _exactly(file, stream, 4 * (num_sizes + 1)))
    if found != magic:
        raise InputError(f"{str(file)!r} begins with {found:#x}, not {magic:#x}; it is no such file of MNIST's format.")
    return tuple(sizes)


def _exactly(file: Path, stream: BufferedIOBase, number: int) -> bytes:
    content = stream.read(number)
    if len(content) != number:
        raise InputError(f"{str(file)!r} ends too early; download it again.")
    return content


@contextmanager
def _reading(file: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}.") from error
