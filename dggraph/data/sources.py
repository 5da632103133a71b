"""Data sets for classifiers: image folders, well-known small sets, or a user's function.

An item of a set is (image (C, H, W) float32, label), ready for the network. Small images are read
once, into one uint8 tensor that loader processes share.

Shape suffixes: N images, H height, W width, C channels.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dggraph.data.augmentation import (
    Augmentation,
    Transform,
    evaluation_transform,
    training_transform,
)
from dggraph.data.diverse_fashion import read_diverse_fashion
from dggraph.data.domains import FAMILIES
from dggraph.data.folders import OnBadImage, ReadFolder, read_folder, refuse_empty, suggesting_skip
from dggraph.data.image_sets import Item
from dggraph.data.pixels import SMALL_SETS, Pixels, attribute_counts, read_pixels
from dggraph.errors import DggraphError, InputError
from dggraph.models.preprocessing import Preprocess
from dggraph.models.registry import import_function
from dggraph.system.loaders import num_samples

DIVERSE = "diverse_fashion"
NAMES = ("imagefolder", *SMALL_SETS, DIVERSE)
NO_LABEL = -1
VALIDATION_FOLDERS = ("val", "validation", "valid")
"""Names of the validation part; the first one that exists is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The location of a data set, and how to read it."""

    dataset: str
    """A name, or `package.module:function`."""
    data_dir: Path | None = None
    """The folder of the set."""
    domains: str | None = None
    """The family of domains of diverse_fashion."""
    num_classes: int | None = None
    """Outputs of the network, if given."""
    is_labelled: bool = True
    """Whether images have classes; distillation can learn from images without."""
    on_bad_image: OnBadImage = "error"
    on_bad_box: OnBadImage = "error"
    argument: Any = None
    """The argument of `package.module:function`."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training and validation sets, and the names of their labels."""

    train: Dataset[Any]
    """Randomly augmented images."""
    validation: Dataset[Any]
    """Images without augmentation."""
    classes: tuple[str, ...]
    """Names by label."""
    skipped: tuple[str, ...] = ()
    """One sentence per bad image that was left out; empty unless requested."""
    notes: tuple[str, ...] = ()
    """One sentence per other fact that users may not expect."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was read and what was left out in each part, as JSON."""


class PixelDataset(Dataset[tuple[Tensor, int]]):
    """A set of images in memory.

    Args:
        pixels: images and labels; converted to grey if `num_channels` is 1.
        transform: maps (C, H, W) uint8 to the network's input.
        num_channels: input channels of the network.
    """

    def __init__(self, pixels: Pixels, transform: Transform, num_channels: int) -> None:
        """Copy the images to one (N, C, H, W) tensor."""
        images_NHWC = pixels.images_NHWC
        if num_channels == 1 and images_NHWC.shape[3] == 3:
            images_NHWC = np.stack(
                [np.asarray(Image.fromarray(image).convert("L")) for image in images_NHWC]
            )[..., None]
        self.images_NCHW = torch.from_numpy(images_NHWC.transpose(0, 3, 1, 2).copy())
        self.labels, self.transform = pixels.labels, transform
        self.attributes = pixels.attributes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images_NCHW[index]), self.labels[index]


class FileDataset(Dataset[tuple[Tensor, int]]):
    """A set of image files.

    Args:
        items: items of an `ImageSet`.
        transform: maps a picture to the network's input.
        outputs: the label of each class of the set; by default its place.
    """

    def __init__(
        self, items: Sequence[Item], transform: Transform, outputs: Sequence[int] | None = None
    ) -> None:
        """Store the arguments; files are read when they are indexed."""
        self.items, self.transform, self.outputs = items, transform, outputs

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.items[index]
        label = NO_LABEL if item.label is None else item.label
        with suggesting_skip():
            picture = item.open()
        return self.transform(picture), label if self.outputs is None else self.outputs[label]


def open_data(source: Source, preprocess: Preprocess, augmentation: Augmentation) -> TrainingData:
    """Open the data set that `source.dataset` names, in `source.data_dir`.

    - `imagefolder` reads `data_dir/train/CLASS/...` and `data_dir/val/CLASS/...`, or for
      distillation images in `data_dir/train` and `data_dir/val`, at any depth.
    - `fashion_mnist` and `mnist` read their four idx files, with or without gzip, in `data_dir`
      itself or where torchvision stores them (`data_dir/FashionMNIST/raw`).
    - `diverse_fashion` is made from fashion_mnist in the domains that `source.domains` names.
    - `cifar10` and `cifar100` read torchvision's layout.
    - `package.module:function` is imported and called with `source.argument`, and returns a
      `TrainingData` or (train, validation, classes).

    Args:
        source: the set to open.
        preprocess: the network's preprocessing, for images of both sets.
        augmentation: the augmentation of training images.

    Raises:
        InputError: the set is missing, is damaged, or does not fit the network; says where files
            must be and how to get them. Files that are not images, or are truncated, are found and
            named here; damage in the middle of a file is found when it is read.
    """
    if (source.domains is None) == (source.dataset == DIVERSE):
        raise InputError(
            f"{DIVERSE} needs domains: one of {', '.join(FAMILIES)}."
            if source.domains is None
            else f"domains = {source.domains!r} means nothing for {source.dataset}; it is for"
            f" {DIVERSE}. Remove it, or choose that data set."
        )
    if source.on_bad_image == "skip" and source.dataset in (*SMALL_SETS, DIVERSE):
        raise InputError(
            f"on_bad_image = 'skip' means nothing for {source.dataset}, whose images are in one"
            " file. Remove that option."
        )
    if ":" in source.dataset:
        data = _call(source, preprocess)
    elif source.dataset == "imagefolder":
        data = _open_folder(source, preprocess, augmentation)
    elif source.dataset in (*SMALL_SETS, DIVERSE):
        channels = preprocess.input_size[0]
        if source.domains is not None:
            found = read_diverse_fashion(source.data_dir, source.domains)
        else:
            found = read_pixels(source.dataset, source.data_dir)
        train = PixelDataset(found.train, training_transform(augmentation, preprocess), channels)
        data = TrainingData(
            train,
            PixelDataset(found.validation, evaluation_transform(preprocess), channels),
            found.classes,
            facts={
                name: attribute_counts(part)
                for name, part in (("train", found.train), ("validation", found.validation))
                if part.attributes
            },
        )
    else:
        close = difflib.get_close_matches(source.dataset, NAMES, n=1)
        hint = (
            f"Did you mean {close[0]!r}?"
            if close
            else f"Choose from {', '.join(NAMES)} and package.module:function."
        )
        if source.dataset in ("coco", "voc"):
            hint = "It is a set of boxes: add task = 'detection'."
        raise InputError(f"there is no dataset {source.dataset!r}. {hint}")
    if source.num_classes is not None and len(data.classes) > source.num_classes:
        raise InputError(
            f"{source.dataset} has {len(data.classes)} classes, but num_classes ="
            f" {source.num_classes}; the network needs one output per class. Leave num_classes out."
        )
    return data


def _open_folder(
    source: Source, preprocess: Preprocess, augmentation: Augmentation
) -> TrainingData:
    folder, names = source.data_dir, VALIDATION_FOLDERS
    if folder is None:
        raise InputError(
            "imagefolder needs data_dir: a folder with train/CLASS/... and val/CLASS/..."
        )
    validation = next(
        (folder / name for name in names if (folder / name).is_dir()), folder / names[0]
    )
    augment, fit = training_transform(augmentation, preprocess), evaluation_transform(preprocess)
    places = {"train": folder / "train", "validation": validation}
    if not source.is_labelled:
        found = {name: read_folder(place, source.on_bad_image) for name, place in places.items()}
        classes, outputs = tuple[str, ...](), None
    else:
        found = {name: _read_classes(place, source) for name, place in places.items()}
        classes = found["train"].classes
        outputs = _outputs(found["validation"].classes, classes, folder / "train", validation)
    return TrainingData(
        FileDataset(found["train"].items, augment),
        FileDataset(found["validation"].items, fit, outputs),
        classes,
        skipped=tuple(sentence for part in found.values() for sentence in part.skipped),
        notes=tuple(sentence for part in found.values() for sentence in part.notes),
        facts={name: part.facts for name, part in found.items()},
    )


def _read_classes(folder: Path, source: Source) -> ReadFolder:
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}. The data set imagefolder needs data_dir/train/CLASS/..."
            " and data_dir/val/CLASS/..."
        )
    found = read_folder(folder, source.on_bad_image)
    if not found.classes:
        raise InputError(
            f"{folder} has images but no folders of images, so the classes are unclear. Make one"
            " folder per class."
        )
    refuse_empty(folder, found)
    return found


def _outputs(
    validated: Sequence[str], trained: Sequence[str], train: Path, validation: Path
) -> list[int]:
    """Return the label of each class of the validation part: its place in the training part.

    A copy may have the classes in another order.
    """
    if set(validated) != set(trained):
        here, there = (
            sorted(set(a) - set(b))[:3] for a, b in ((trained, validated), (validated, trained))
        )
        raise InputError(
            f"{train} and {validation} have different classes: only in the first {here}, only in"
            f" the second {there}. A label is the place of its class among the sorted folders, so"
            " both need the same folders."
        )
    return [trained.index(name) for name in validated]


def call_with_configuration(source: Source) -> Any:
    """Call the function that `source.dataset` names with `source.argument`.

    Raises:
        InputError: the function cannot be imported, or fails.
    """
    function = import_function(source.dataset)
    try:
        return function(source.argument)
    except DggraphError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise InputError(
            f"{source.dataset} failed when it was called with the configuration:"
            f" {type(error).__name__}: {error}. It must accept the configuration and return the"
            " sets."
        ) from error


def _call(source: Source, preprocess: Preprocess) -> TrainingData:
    found = call_with_configuration(source)
    try:
        data = (
            found
            if isinstance(found, TrainingData)
            else TrainingData(found[0], found[1], tuple(found[2]))
        )
        with torch.random.fork_rng(devices=[]):
            parts = {
                name: (num_samples(part), *part[0])
                for name, part in (("train", data.train), ("validation", data.validation))
            }
        shapes = {
            name: (tuple(image.shape), image.dtype, int(label))
            for name, (_, image, label) in parts.items()
        }
    except DggraphError:
        raise
    except Exception as error:  # a user's function or its sets may raise or return anything
        raise InputError(
            f"{source.dataset} is not a data set: {type(error).__name__}: {error}. Called with the"
            " configuration, it must return (train, validation, classes): two sets with a length"
            " and at least one (image tensor, label) each, and the names of the classes."
        ) from error
    for part, (shape, dtype, label) in shapes.items():
        if shape != preprocess.input_size or dtype != torch.float32:
            raise InputError(
                f"{source.dataset}: an image of {part} is {dtype} {shape}, but the network reads"
                f" torch.float32 {preprocess.input_size}; set input_size, or change the data set."
            )
        if not 0 <= label < len(data.classes):
            raise InputError(
                f"{source.dataset}: a label of {part} is {label}, but there are {len(data.classes)}"
                " classes; labels count from 0."
            )
    return data
