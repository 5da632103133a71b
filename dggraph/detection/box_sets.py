"""Images with boxes: what a set is, once it has been read, and what is checked of one that was made
by somebody's own function.

Boxes are (left, top, right, bottom) in pixels, from 0. Classes count from 0 in the order of their
COCO ids; identifiers of annotations are not kept, since files in the wild begin them at 0, which
COCO's evaluation takes for "no match".
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
"""In pixels: of what is smaller nothing can be learned."""
MAX_ID = 2**63 - 1
"""Largest id of an image: what a tensor holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One object that was annotated; what is found is a `Detection`."""

    corners: Corners
    """Left, top, right, bottom, within the image."""
    label: int
    """Index into `BoxSet.classes`."""
    area: float
    """Area of its mask where there is one, else of the box; decides between small, medium and
    large.
    """
    is_crowd: bool = False
    """Stands for many objects: neither learned nor counted as missed."""

    @property
    def is_tiny(self) -> bool:
        """A side is under a pixel: judged as COCO does, and not learned."""
        left, top, right, bottom = self.corners
        return min(right - left, bottom - top) < MIN_SIDE

    @property
    def is_learnable(self) -> bool:
        """Neither a crowd nor tiny."""
        return not self.is_crowd and not self.is_tiny


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxImage:
    """One image and what is on it."""

    name: str
    """As the annotations have it."""
    file: Path
    image_id: int
    width: int
    """Width of the image that the boxes were drawn on."""
    height: int
    boxes: tuple[Box, ...]
    is_upright: bool = False
    """They were drawn on the image turned as its EXIF data say, not on the image as it is
    stored.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSet:
    """A set that has passed every check."""

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """COCO's number of each class."""
    images: tuple[BoxImage, ...]
    skipped: tuple[str, ...]
    """What was left out as bad, a sentence each; empty unless that was asked for."""
    num_clipped: int
    """Boxes that reached over the edge of their image and were cut there."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often something else was read as one might not expect, in words."""

    @property
    def learnable(self) -> tuple[BoxImage, ...]:
        """Images with at least one box that can be learned: without one there is nothing to learn a
        place from.
        """
        return tuple(image for image in self.images if any(box.is_learnable for box in image.boxes))

    @property
    def facts(self) -> dict[str, Any]:
        """What was read and what was left out, in numbers, as JSON."""
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
        """The same as a sentence."""
        facts = self.facts
        words = {
            "crowds": "crowds",
            "under a pixel": "with a side under a pixel, judged but not learned",
        }
        words |= {"cut at the edge": "cut at the edge of their image"}
        of_boxes = [f"{facts[key]} {what}" for key, what in words.items() if facts[key]]
        told = (
            f"{self.name}: {plural(facts['images'], 'image')}, {facts['boxes']}"
            f" {'box' if facts['boxes'] == 1 else 'boxes'}"
        )
        others = [f"{len(self.skipped)} bad entries left out"] if self.skipped else []
        others += [f"{number} {what}" for what, number in self.counts.items()]
        return ("; ".join([", ".join([told, *of_boxes]), *others]),)


def refuse_other_categories(learned: Sequence[str], learner: str, expected: BoxSet) -> None:
    """Refuse a set whose classes are not those that `learner` has learned, in their order.

    Raises:
        InputError: names some of them.
    """
    if tuple(learned) != expected.classes:
        strangers = sorted(set(learned) ^ set(expected.classes)) or expected.classes
        raise InputError(
            f"{learner} and {expected.name} have different categories, for example"
            f" {list(strangers[:3])}; a label is a place among them."
        )


def refuse_bad_boxes(found: BoxSet) -> BoxSet:
    """`found`, which somebody's own function made, where everything in it makes sense.

    Raises:
        InputError: an image id is used twice, or beyond 2**63; a box has no class, or is not within
            its image; names image and box.
    """
    twice, number = next(
        iter(Counter(image.image_id for image in found.images).most_common(1)), (0, 0)
    )
    if number > 1:
        raise InputError(
            f"{found.name} has {number} images with the id {twice}; give each its own."
        )
    for image in found.images:
        if abs(image.image_id) > MAX_ID:
            raise InputError(
                f"{found.name}: image {image.name!r} has the id {image.image_id}, beyond {MAX_ID}."
                " Number them anew."
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
                    f" box {box.corners} with label {box.label}; it must be left, top, right,"
                    f" bottom within the image, and the label one of the {len(found.classes)}"
                    " classes'."
                )
    return found
