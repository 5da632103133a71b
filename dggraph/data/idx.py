"""Files in MNIST's format (idx): big-endian sizes, then bytes, with or without gzip.

A file is read to its end before its contents are used, so that its length and gzip's checksum are
known to be right.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dggraph.errors import InputError
from dggraph.models.preprocessing import MAX_PIXELS

MAGIC = 0x800
"""First bytes of files of unsigned bytes; the number of axes is added."""
CHUNK = 1 << 20


def read_idx(file: Path, num_axes: int) -> NDArray[np.uint8]:
    """Read the complete array.

    Raises:
        InputError: the file cannot be read, is damaged, or has another content; names the file.
    """
    with _reading(file) as stream:
        shape = _shape(file, stream, num_axes)
        content = stream.read()
    _refuse_other_length(file, shape, len(content))
    return np.frombuffer(content, np.uint8).reshape(shape)


def check_idx(file: Path, num_axes: int) -> tuple[int, ...]:
    """Return the shape of the array after reading the file to its end, in chunks.

    Raises:
        InputError: as for `read_idx`.
    """
    with _reading(file) as stream:
        shape, length = _shape(file, stream, num_axes), 0
        while chunk := stream.read(CHUNK):
            length += len(chunk)
    _refuse_other_length(file, shape, length)
    return shape


def rows_of(file: Path, shape: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the entries of the first axis, as bytes.

    Args:
        file: a file that `check_idx` has read.
        shape: the result of `check_idx`.

    Raises:
        InputError: the file has changed since.
    """
    with _reading(file) as stream:
        found = _shape(file, stream, len(shape))
        for _ in range(shape[0]):
            row = stream.read(math.prod(shape[1:]))
            if found != shape or len(row) != math.prod(shape[1:]):
                raise InputError(f"{file} has changed while it was read. Run again.")
            yield row


def _shape(file: Path, stream: BufferedIOBase, num_axes: int) -> tuple[int, ...]:
    head = stream.read(4 * (num_axes + 1))
    magic, *shape = struct.unpack(f">{num_axes + 1}I", head.ljust(4 * (num_axes + 1), b"\0"))
    if magic != MAGIC + num_axes:
        raise InputError(
            f"{file} begins with {magic:#x}, not {MAGIC + num_axes:#x}, so it is not a file in"
            f" MNIST's format with {num_axes} axes."
        )
    if len(head) < 4 * (num_axes + 1):
        raise InputError(
            f"{file} ends too early, within its first {4 * (num_axes + 1)} bytes. Copy it again."
        )
    if math.prod(shape[1:]) > MAX_PIXELS:
        sides = " x ".join(str(side) for side in shape[1:])
        raise InputError(
            f"{file} declares images of {sides} pixels; the limit is {MAX_PIXELS}. Check that it is"
            " the right file."
        )
    return tuple(shape)


def _refuse_other_length(file: Path, shape: tuple[int, ...], length: int) -> None:
    if length != math.prod(shape):
        what = "ends too early" if length < math.prod(shape) else "is too long"
        raise InputError(
            f"{file} {what}: it declares the shape {list(shape)}, but has {length} bytes of data."
            " Copy it again."
        )


@contextmanager
def _reading(file: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}. Copy it again.") from error
