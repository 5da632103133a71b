"""Images to evaluate a network on, labelled by its outputs.

They are the validation part of a data set, or a folder of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dggraph.baselines.network import BaselineNetwork
from dggraph.data.augmentation import Augmentation, evaluation_transform
from dggraph.data.class_names import as_text
from dggraph.data.folders import read_folder
from dggraph.data.image_sets import composed, evenly_spaced
from dggraph.data.sources import VALIDATION_FOLDERS, FileDataset, Source, open_data
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, require_preprocess
from dggraph.network.network import DynamicNetwork
from dggraph.system.loaders import num_samples


@dataclass(frozen=True, slots=True)
class ValidationData:
    """The images of an evaluation, and the names of their labels."""

    images: Dataset[Any]
    """Items (image (C, H, W), label); the label is -1 if there are no classes."""
    classes: tuple[str, ...]
    """Names by label; empty for images without classes."""
    skipped: tuple[str, ...] = ()
    """One sentence per bad image that was left out; empty unless requested."""
    notes: tuple[str, ...] = ()
    """One sentence per other thing that was left out."""


class _Relabelled(Dataset[tuple[Tensor, int]]):
    """A data set whose labels are mapped to outputs of a network."""

    def __init__(self, images: Dataset[Any], outputs: Sequence[int]) -> None:
        self.images, self.outputs = images, outputs

    def __len__(self) -> int:
        return num_samples(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return image, self.outputs[int(label)]


def open_validation(
    net: DynamicNetwork | BaselineNetwork,
    source: Source,
    *,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
) -> ValidationData:
    """Open the validation part of `source.dataset`.

    `imagefolder` needs no training part here. If there is no `data_dir/train`, this reads
    `data_dir/val` or `data_dir` itself: a folder with one sub-folder per class, or of images
    without classes.

    Args:
        net: the network to evaluate; its labels say which output a class is.
        source: the set to open.
        preprocess: how images become the network's input; by default as the network declares.
        limit: the largest number of images, evenly spaced over the set.

    Raises:
        InputError: as for `open_data`; the network does not say how images become its input; or it
            names its outputs, and a class of the set is not among them.
    """
    preprocess = require_preprocess(preprocess or net.preprocess)
    data = _open(source, preprocess)
    data = replace(data, classes=as_text(data.classes))
    data = _as_named(data, None if net.labels is None else as_text(net.labels), source.dataset)
    num_images = num_samples(data.images)
    is_taken = evenly_spaced(num_images, limit)
    return replace(
        data, images=Subset(data.images, [index for index in range(num_images) if is_taken(index)])
    )


def attributes_of(images: Dataset[Any]) -> dict[str, Tensor]:
    """Return attributes of the images of `open_validation`, each (M,), where the set has any.

    Those of diverse_fashion say how each image was changed.
    """
    if isinstance(images, Subset):
        return {
            name: values[list(images.indices)]
            for name, values in attributes_of(images.dataset).items()
        }
    if isinstance(images, _Relabelled):
        return attributes_of(images.images)
    own = getattr(images, "attributes", {})
    return {name: torch.as_tensor(values).long() for name, values in own.items()}


def _open(source: Source, preprocess: Preprocess) -> ValidationData:
    folder = source.data_dir
    if (
        source.dataset == "imagefolder"
        and folder is not None
        and folder.is_dir()
        and not (folder / "train").is_dir()
    ):
        names = (*(folder / name for name in VALIDATION_FOLDERS), folder)
        found = read_folder(next(name for name in names if name.is_dir()), source.on_bad_image)
        return ValidationData(
            FileDataset(found.items, evaluation_transform(preprocess)),
            found.classes,
            found.skipped,
            found.notes,
        )
    data = open_data(source, preprocess, Augmentation())
    return ValidationData(data.validation, data.classes, data.skipped, data.notes)


def _as_named(data: ValidationData, labels: Sequence[str] | None, dataset: str) -> ValidationData:
    """Match classes to outputs: by name if the network has the names, else by place."""
    classes = data.classes
    if not classes or labels is None or tuple(labels) == classes:
        return data
    known = [composed(label) for label in labels]
    strangers = [name for name in classes if known.count(composed(name)) != 1]
    if not strangers:
        outputs = [known.index(composed(name)) for name in classes]
        return replace(data, images=_Relabelled(data.images, outputs), classes=tuple(labels))
    if len(labels) == len(classes) and not set(known) & {composed(name) for name in classes}:
        return data
    raise InputError(
        f"{dataset} has {len(classes)} classes and the network {len(labels)} labels, of which not"
        f" exactly one is {strangers[0]!r}, so it is unclear which output is which class. Name the"
        " folders as the network's labels, or evaluate it on its own classes."
    )
