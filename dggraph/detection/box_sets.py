"""A set of images with boxes, after reading, and the checks of a set that user code made.

Boxes are (left, top, right, bottom) in pixels, from 0. Classes count from 0 in the order of their
COCO ids. Identifiers of annotations are not kept: many files start them at 0, which COCO's
evaluation takes for "no match".
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dggraph.errors import InputError
from dggraph.graph.detection import Corners
from dggraph.views.escaping import plural

MIN_SIDE = 1.0
"""In pixels; nothing can be learned from a smaller box."""
MAX_ID = 2**63 - 1
"""Largest id of an image that fits into a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One annotated object; a predicted one is a `Detection`."""

    corners: Corners
    """Left, top, right, bottom, within the image."""
    label: int
    """Index into `BoxSet.classes`."""
    area: float
    """Area of its mask if it has one, else of the box.

    It decides between small, medium and large objects.
    """
    is_crowd: bool = False
    """Whether the box covers many objects, and is neither learned nor counted as missed."""

    @property
    def is_tiny(self) -> bool:
        """Whether a side is under a pixel; such a box is evaluated, as in COCO, but not learned."""
        left, top, right, bottom = self.corners
        return min(right - left, bottom - top) < MIN_SIDE

    @property
    def is_learnable(self) -> bool:
        """Whether the box is neither a crowd nor tiny."""
        return not self.is_crowd and not self.is_tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxImage:
    """One image and its boxes."""

    name: str
    """Name of the image in the annotations."""
    file: Path
    image_id: int
    width: int
    """Width of the image that the boxes were drawn on."""
    height: int
    boxes: tuple[Box, ...]
    is_upright: bool = False
    """Whether boxes were drawn on the image turned by its EXIF data, not on the stored image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSet:
    """A set that has passed every check."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """COCO's id of each class."""
    images: tuple[BoxImage, ...]
    skipped: tuple[str, ...]
    """Entries that were left out as bad, a sentence each; empty unless `skip` was chosen."""
    num_clipped: int
    """Boxes that reached over the edge of their image and were cut there."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """For each other unusual spelling, in words, how often it was read."""

    @property
    def learnable(self) -> tuple[BoxImage, ...]:
        """Images with at least one box that can be learned.

        Without a box there is no position to learn.
        """
        return tuple(image for image in self.images if any(box.is_learnable for box in image.boxes))

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers of what was read and what was left out, as JSON."""
        boxes = [box for image in self.images for box in image.boxes]
        facts: dict[str, Any] = {
            "name": self.name,
            "images": len(self.images),
            "images to learn from": len(self.learnable),
        }
        facts |= {"boxes": len(boxes), "crowds": sum(box.is_crowd for box in boxes)}
        facts |= {
            "under a pixel": sum(box.is_tiny for box in boxes),
            "cut at the edge": self.num_clipped,
        }
        return facts | {"left out": len(self.skipped)} | dict(self.counts)

    @property
    def notes(self) -> tuple[str, ...]:
        """The facts as one sentence."""
        facts = self.facts
        words = {
            "crowds": "crowds",
            "under a pixel": "with a side under a pixel, evaluated but not learned",
        }
        words |= {"cut at the edge": "cut at the edge of their image"}
        of_boxes = [f"{facts[key]} {what}" for key, what in words.items() if facts[key]]
        read = (
            f"{self.name}: {plural(facts['images'], 'image')}, {facts['boxes']}"
            f" {'box' if facts['boxes'] == 1 else 'boxes'}"
        )
        others = [f"{len(self.skipped)} bad entries left out"] if self.skipped else []
        others += [f"{number} {what}" for what, number in self.counts.items()]
        return ("; ".join([", ".join([read, *of_boxes]), *others]),)


def refuse_other_categories(learned: Sequence[str], learner: str, expected: BoxSet) -> None:
    """Refuse a set whose classes differ from those that `learner` has learned, or in order.

    Raises:
        InputError: the message names some of the classes that differ.
    """
    if tuple(learned) != expected.classes:
        strangers = sorted(set(learned) ^ set(expected.classes)) or expected.classes
        raise InputError(
            f"{learner} and {expected.name} have different categories, for example"
            f" {list(strangers[:3])}; labels are indices into them, so both need the same ones in"
            " the same order."
        )


def refuse_bad_boxes(found: BoxSet) -> BoxSet:
    """Return `found`, a set that user code made, if it is valid.

    Raises:
        InputError: an image id is used twice, or beyond 2**63; a box has no class, or is not within
            its image. The message names the image and the box.
    """
    twice, number = next(
        iter(Counter(image.image_id for image in found.images).most_common(1)), (0, 0)
    )
    if number > 1:
        raise InputError(
            f"{found.name} has {number} images with the id {twice}; give each a different id."
        )
    for image in found.images:
        if abs(image.image_id) > MAX_ID:
            raise InputError(
                f"{found.name}: image {image.name!r} has the id {image.image_id}, beyond {MAX_ID}."
                " Renumber the images."
            )
        for box in image.boxes:
            left, top, right, bottom = box.corners
            is_inside = 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
            if not (
                all(math.isfinite(side) for side in box.corners)
                and is_inside
                and 0 <= box.label < len(found.classes)
            ):
                raise InputError(
                    f"{found.name}: image {image.name!r} of {image.width} x {image.height} has a"
                    f" box {box.corners} with label {box.label}; a box must be left, top, right,"
                    f" bottom within the image, and a label an index into the {len(found.classes)}"
                    " classes."
                )
    return found
