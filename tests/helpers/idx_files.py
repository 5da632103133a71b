"""Images in IDX files, as MNIST has them."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path


def write_idx(
    folder: Path, part: str, labels: Sequence[int] | None, number: int, *, suffix: str = ".gz"
) -> Path:
    """Images of 3x2 pixels, all of the value of their place in the set."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if suffix else open
    images = folder / f"{part}-images-idx3-ubyte{suffix}"
    with opened(images, "wb") as stream:
        stream.write(
            struct.pack(">IIII", 0x803, number, 2, 3)
            + b"".join(bytes([index % 256] * 6) for index in range(number))
        )
    if labels is not None:
        with opened(folder / f"{part}-labels-idx1-ubyte{suffix}", "wb") as stream:
            stream.write(struct.pack(">II", 0x801, len(labels)) + bytes(labels))
    return images
