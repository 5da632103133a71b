"""Where images and labels come from: folders of images, the small data sets everybody knows, or a
function of the user's own.

Every set is asked by index and gives (image (C, H, W) float32, label), ready for the network. Small
images are read once, into one uint8 tensor that loader processes share.

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
from dggraph.data.folders import OnBadImage, ReadFolder, read_folder, refuse_empty, telling_way_out
from dggraph.data.image_sets import Item
from dggraph.data.pixels import SMALL_SETS, Pixels, read_pixels
from dggraph.errors import DggraphError, InputError
from dggraph.models.preprocessing import Preprocess
from dggraph.models.registry import import_function
from dggraph.system.loaders import num_samples

NAMES = ("imagefolder", *SMALL_SETS)
NO_LABEL = -1
VALIDATION_FOLDERS = ("val", "validation", "valid")
"""Names of the validation part, the first that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a data set is, and how it is read."""

    dataset: str
    """A name, or `package.module:function`."""
    data_dir: Path | None = None
    """The folder that it is in."""
    num_classes: int | None = None
    """Outputs of the network, where that was said."""
    is_labelled: bool = True
    """False for images without classes, which distillation learns from."""
    on_bad_image: OnBadImage = "error"
    on_bad_box: OnBadImage = "error"
    argument: Any = None
    """What `package.module:function` is called with."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Two sets and what their labels mean."""

    train: Dataset[Any]
    """Augmented at random."""
    validation: Dataset[Any]
    """Always the same."""
    classes: tuple[str, ...]
    """Names, by label."""
    skipped: tuple[str, ...] = ()
    """What was left out as bad, a sentence each; empty unless that was asked for."""
    notes: tuple[str, ...] = ()
    """What else is not as one might expect, a sentence each."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was read and what was left out, of each part, as JSON."""


class PixelDataset(Dataset[tuple[Tensor, int]]):
    """Images in memory.

    Args:
        pixels: of the images; in grey where `num_channels` is 1.
        transform: from (C, H, W) uint8 to what the network reads.
        num_channels: that the network reads.
    """

    def __init__(self, pixels: Pixels, transform: Transform, num_channels: int) -> None:
        images_NHWC = pixels.images_NHWC
        if num_channels == 1 and images_NHWC.shape[3] == 3:
            images_NHWC = np.stack(
                [np.asarray(Image.fromarray(image).convert("L")) for image in images_NHWC]
            )[..., None]
        self.images_NCHW = torch.from_numpy(images_NHWC.transpose(0, 3, 1, 2).copy())
        self.labels, self.transform = pixels.labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images_NCHW[index]), self.labels[index]


class FileDataset(Dataset[tuple[Tensor, int]]):
    """Image files.

    Args:
        items: of an `ImageSet`.
        transform: from a picture to what the network reads.
        outputs: the label of each class of the set; by default its place.
    """

    def __init__(
        self, items: Sequence[Item], transform: Transform, outputs: Sequence[int] | None = None
    ) -> None:
        self.items, self.transform, self.outputs = items, transform, outputs

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.items[index]
        label = NO_LABEL if item.label is None else item.label
        with telling_way_out():
            picture = item.open()
        return self.transform(picture), label if self.outputs is None else self.outputs[label]


def open_data(source: Source, preprocess: Preprocess, augmentation: Augmentation) -> TrainingData:
    """The data set that `source.dataset` names, in `source.data_dir`.

    `imagefolder` reads `data_dir/train/CLASS/...` and `data_dir/val/CLASS/...`, or for distillation
    images in `data_dir/train` and `data_dir/val`, at any depth; `fashion_mnist` and `mnist` their
    four idx files, packed or not, in `data_dir` itself or where torchvision has them
    (`data_dir/FashionMNIST/raw`); `cifar10` and `cifar100` torchvision's layout;
    `package.module:function` is imported and called with `source.argument`, and returns a
    `TrainingData` or (train, validation, classes).

    Args:
        source: what to read.
        preprocess: of the network, for images of both sets.
        augmentation: of training images.

    Raises:
        InputError: the set is not there, is damaged, or does not fit the network; says where files
            must be and how to get them. Image files that are not images, or end too early, are
            found here and named; damage in the middle of one when its turn comes.
    """
    if source.on_bad_image == "skip" and source.dataset in SMALL_SETS:
        raise InputError(
            f"on_bad_image = 'skip' means nothing for {source.dataset}, whose images are in one"
            " file. Leave it out."
        )
    if ":" in source.dataset:
        data = _call(source, preprocess)
    elif source.dataset == "imagefolder":
        data = _open_folder(source, preprocess, augmentation)
    elif source.dataset in SMALL_SETS:
        found, channels = read_pixels(source.dataset, source.data_dir), preprocess.input_size[0]
        train = PixelDataset(found.train, training_transform(augmentation, preprocess), channels)
        data = TrainingData(
            train,
            PixelDataset(found.validation, evaluation_transform(preprocess), channels),
            found.classes,
        )
    else:
        close = difflib.get_close_matches(source.dataset, NAMES, n=1)
        hint = (
            f"Did you mean {close[0]!r}?"
            if close
            else f"There are {', '.join(NAMES)}, and package.module:function."
        )
        if source.dataset in ("coco", "voc"):
            hint = "It is one of boxes: add task = 'detection'."
        raise InputError(f"there is no dataset {source.dataset!r}. {hint}")
    if source.num_classes is not None and len(data.classes) > source.num_classes:
        raise InputError(
            f"{source.dataset} has {len(data.classes)} classes, but num_classes ="
            f" {source.num_classes}; the network needs an output for each."
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
            f"there is no folder {folder}. The data set imagefolder reads data_dir/train/CLASS/..."
            " and data_dir/val/CLASS/..."
        )
    found = read_folder(folder, source.on_bad_image)
    if not found.classes:
        raise InputError(
            f"{folder} has images but no folders of them, so classes are unclear. Make a folder for"
            " each class."
        )
    refuse_empty(folder, found)
    return found


def _outputs(
    judged: Sequence[str], learned: Sequence[str], train: Path, validation: Path
) -> list[int]:
    """The label of each class of the validation part: its place among those of the training part,
    which a copy may have in another order.
    """
    if set(judged) != set(learned):
        here, there = (
            sorted(set(a) - set(b))[:3] for a, b in ((learned, judged), (judged, learned))
        )
        raise InputError(
            f"{train} and {validation} have different classes: only in the first {here}, only in"
            f" the second {there}. A label is the place of its class among the sorted folders, so"
            " both need the same ones."
        )
    return [learned.index(name) for name in judged]


def call_with_configuration(source: Source) -> Any:
    """What the function `package.module:function` that `source.dataset` names returns.

    Raises:
        InputError: it cannot be imported, or fails.
    """
    function = import_function(source.dataset)
    try:
        return function(source.argument)
    except DggraphError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise InputError(
            f"{source.dataset} failed when it was called with the configuration:"
            f" {type(error).__name__}: {error}."
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
    except Exception as error:  # whatever a user's function does not return, or its sets raise
        raise InputError(
            f"{source.dataset} is not a data set: {type(error).__name__}: {error}. Called with the"
            " configuration, it must return (train, validation, classes): two sets with a length,"
            " at least one (image tensor, label) each, and the names of the classes."
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
                " classes."
            )
    return data
