"""Images in IDX files, as MNIST has them."""

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


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


def write_array(file: Path, values: np.ndarray) -> None:
    content = (
        struct.pack(f">{values.ndim + 1}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)


def write_mnist(
    folder: Path, suffix: str = ".gz", num_images: int = 20
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    made = {}
    for number, part in enumerate(("train", "t10k")):
        generator = np.random.default_rng(number)
        images = generator.integers(0, 256, (num_images, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, num_images, dtype=np.uint8)
        write_array(folder / f"{part}-images-idx3-ubyte{suffix}", images)
        write_array(folder / f"{part}-labels-idx1-ubyte{suffix}", labels)
        made[part] = images, labels
    return made
