"""Small data sets as pixels in memory: MNIST's format, and CIFAR through torchvision.

Nothing is downloaded.

Shape suffixes: N images, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from dggraph.data.idx import read_idx
from dggraph.errors import InputError

FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True, slots=True)
class Pixels:
    """Images of one size."""

    images_NHWC: NDArray[np.uint8]
    labels: list[int]
    attributes: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Facts about each image besides its class, (N,) by name, for analyses."""


@dataclass(frozen=True, slots=True)
class PixelSet:
    """A data set of two parts."""

    train: Pixels
    validation: Pixels
    classes: tuple[str, ...]


def read_pixels(name: str, folder: Path | None) -> PixelSet:
    """Read the set called `name`, one of `SMALL_SETS`.

    Args:
        name: for example `mnist`.
        folder: the folder of its files; may be None for fashion_mnist, which Debian packages.

    Raises:
        InputError: files are missing or damaged; says where they must be and how to get them.
    """
    return SMALL_SETS[name](name, folder)


def attribute_counts(pixels: Pixels) -> dict[str, list[int]]:
    """Return the number of images with each value of each attribute, by its name."""
    return {name: np.bincount(values).tolist() for name, values in pixels.attributes.items()}


def _mnist(
    name: str, folder: Path | None, *, usual: Path | None, home: str, classes: tuple[str, ...]
) -> PixelSet:
    place = folder or usual
    if place is None:
        raise InputError(
            f"{name} needs data_dir: a folder with the four idx files, or with {home}/raw that has"
            " them."
        )
    here = (place, place / home / "raw")
    parts = []
    for part in ("train", "t10k"):
        names = [
            one / f"{part}-images-idx3-ubyte{suffix}" for one in here for suffix in (".gz", "")
        ]
        file = next((one for one in names if one.is_file()), None)
        if file is None:
            packed = (
                ""
                if usual is None
                else "`apt-get install dataset-fashion-mnist` fills the first one; "
            )
            raise InputError(
                f"{name} is missing: there is no {part}-images-idx3-ubyte or"
                f" {part}-images-idx3-ubyte.gz in {here[0]} or {here[1]}."
                f" {packed}torchvision.datasets.{home}(DATA_DIR, download=True) fills the second"
                " one. Give the folder as data_dir."
            )
        beside = file.with_name(file.name.replace("-images-idx3", "-labels-idx1"))
        images_NHW, labels_N = read_idx(file, 3), read_idx(beside, 1)
        if len(labels_N) != len(images_NHW) or not images_NHW.size:
            raise InputError(
                f"{beside} has {len(labels_N)} labels for {len(images_NHW)} images, so the files do"
                " not belong together. Copy both again from one place."
            )
        if labels_N.max() >= len(classes):
            raise InputError(
                f"{beside} has a label {labels_N.max()}, but {name} has {len(classes)} classes."
                " Check that it is the right file."
            )
        parts.append(Pixels(images_NHW[..., None], labels_N.tolist()))
    return PixelSet(parts[0], parts[1], classes)


def _cifar(name: str, folder: Path | None, *, home: str) -> PixelSet:
    if folder is None:
        raise InputError(f"{name} needs data_dir: a folder with the folder {home}.")
    builder = getattr(datasets, name.upper())
    try:
        train, test = (
            builder(str(folder), train=is_train, download=False) for is_train in (True, False)
        )
    except RuntimeError as error:  # a file is missing, or has another digest
        raise InputError(
            f"{name} is missing or damaged: {folder / home} must have the files of its Python"
            f" version. torchvision.datasets.{name.upper()}({str(folder)!r}, download=True)"
            " downloads them."
        ) from error
    parts = [Pixels(one.data, list(one.targets)) for one in (train, test)]
    return PixelSet(parts[0], parts[1], tuple(train.classes))


SMALL_SETS: dict[str, Callable[[str, Path | None], PixelSet]] = {
    "fashion_mnist": partial(
        _mnist, usual=DEBIAN_FASHION_MNIST, home="FashionMNIST", classes=FASHION_CLASSES
    ),
    "mnist": partial(_mnist, usual=None, home="MNIST", classes=tuple("0123456789")),
    "cifar10": partial(_cifar, home="cifar-10-batches-py"),
    "cifar100": partial(_cifar, home="cifar-100-python"),
}
