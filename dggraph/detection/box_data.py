"""Images with boxes: the sets that a configuration names, and their samples.

Samples are images and targets, the tensors that torchvision's detectors take. Pixels are float32 in
[0, 1], because detectors normalise and resize images themselves.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dggraph.data.folders import suggesting_skip
from dggraph.data.sources import Source, call_with_configuration
from dggraph.detection.box_entries import OnBadBox
from dggraph.detection.box_images import compare_images, open_drawn_on
from dggraph.detection.box_sets import (
    BoxImage,
    BoxSet,
    refuse_bad_boxes,
    refuse_other_categories,
)
from dggraph.detection.coco import read_coco
from dggraph.detection.detectors import FIRST_CLASS
from dggraph.detection.voc import read_voc_part
from dggraph.errors import InputError
from dggraph.models.image_files import Depth

Target = dict[str, Tensor]


class BoxDataset(Dataset[tuple[Tensor, Target]]):
    """A dataset of (image (3, H, W), target).

    A target has `boxes` (N, 4) float32 as corners in pixels, `labels` (N,) int64 from 1, since 0 is
    torchvision's background, and `image_id`. Crowds and boxes with a side under a pixel are left
    out, because detectors cannot learn from them.

    Args:
        images: images of a `BoxSet`; for training its `learnable` images.
        flip: probability of a horizontal flip.

    Raises:
        InputError: (when an image is read) it cannot be read, or its size differs from that in its
            annotations.
    """

    def __init__(self, images: Sequence[BoxImage], *, flip: float = 0.0) -> None:
        self.images = images
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(flip),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        entry = self.images[index]
        with suggesting_skip():
            image = open_drawn_on(entry)
        known = [box for box in entry.boxes if box.is_learnable]
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor([box.corners for box in known], dtype=torch.float32).reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(entry.height, entry.width),
        )
        labels = torch.tensor([box.label + FIRST_CLASS for box in known], dtype=torch.int64)
        tensor, target = self.transform(image, {"boxes": boxes, "labels": labels})
        return tensor, target | {"image_id": torch.tensor(entry.image_id)}


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Return the images and targets of a batch as lists, because images may differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def open_boxes(source: Source) -> tuple[BoxSet, BoxSet]:
    """Return the training and validation sets that `source.dataset` names, in `source.data_dir`.

    `coco` reads `annotations/instances_train*.json` and `instances_val*.json`. The images are in
    folders named after the last part of the files' names (`train2017`), next to `annotations` or in
    `images`. `voc` reads `Annotations`, `JPEGImages` and the lists `ImageSets/Main/train.txt` and
    `val.txt`. `package.module:function` is imported and called with `source.argument`, and returns
    two `BoxSet`.

    Raises:
        InputError: the set does not exist, or is bad as described for `read_coco`; or the two parts
            have different classes, or other classes than num_classes.
    """
    training, validation = _open_part(source, "train"), open_validation_boxes(source)
    refuse_other_categories(training.classes, training.name, validation)
    if source.num_classes not in (None, len(training.classes)):
        raise InputError(
            f"{training.name} has {len(training.classes)} categories, but num_classes ="
            f" {source.num_classes}. The background is not counted; leave num_classes out."
        )
    if not training.learnable:
        raise InputError(
            f"{training.name} has no boxes to learn from on {len(training.images)} images."
            f" {training.notes[0]}."
        )
    return training, validation


def open_validation_boxes(source: Source) -> BoxSet:
    """Return the second set of `open_boxes`; a training part need not exist.

    Raises:
        InputError: the set does not exist, is bad as described for `read_coco`, or has no object to
            detect.
    """
    found = _open_part(source, "val")
    if not any(not box.is_crowd for image in found.images for box in image.boxes):
        raise InputError(
            f"{found.name} has no boxes on {len(found.images)} images, so there is nothing to"
            " detect."
        )
    return found


def _open_part(source: Source, part: str) -> BoxSet:
    if ":" in source.dataset:
        sets = call_with_configuration(source)
        if not (
            isinstance(sets, tuple)
            and len(sets) == 2
            and all(isinstance(one, BoxSet) for one in sets)
        ):
            raise InputError(
                f"{source.dataset} does not return sets of boxes; it must return two BoxSet, for"
                " training and validation."
            )
        return _compared(refuse_bad_boxes(sets[part == "val"]), source)
    if source.dataset not in READERS:
        raise InputError(
            f"there is no dataset {source.dataset!r} of boxes; choose one of {', '.join(READERS)},"
            " or package.module:function."
        )
    if source.data_dir is None:
        raise InputError(f"{source.dataset} needs data_dir, the folder that it is in.")
    return _compared(READERS[source.dataset](source.data_dir, part, source.on_bad_box), source)


def _compared(found: BoxSet, source: Source) -> BoxSet:
    """Return `found` without bad images if either key is `skip`.

    `on_bad_image` set to `skip` reads every image completely to find them.
    """
    is_skipped = "skip" in (source.on_bad_box, source.on_bad_image)
    depth: Depth = "whole" if source.on_bad_image == "skip" else "ends"
    return compare_images(found, on_bad="skip" if is_skipped else "error", depth=depth)


def _read_coco(folder: Path, part: str, on_bad: OnBadBox) -> BoxSet:
    files = sorted(folder.glob(f"annotations/instances_{part}*.json"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        found = f"there are {len(files)}: {names}" if files else "there is none"
        raise InputError(
            f"coco needs one file {folder / 'annotations'}/instances_{part}*.json, for example"
            f" instances_{part}2017.json; {found}."
        )
    name = files[0].stem.removeprefix("instances_")
    images = next(
        (place for place in (folder / name, folder / "images" / name) if place.is_dir()), None
    )
    if images is None:
        raise InputError(
            f"there is no folder {folder / name} with the images of {files[0].name}, nor"
            f" {folder / 'images' / name}."
        )
    return read_coco(files[0], images, on_bad=on_bad)


READERS: dict[str, Callable[[Path, str, OnBadBox], BoxSet]] = {
    "coco": _read_coco,
    "voc": read_voc_part,
}
