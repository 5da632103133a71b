"""What a detector finds on an image. Everywhere in dggraph a label is a place among the classes,
from 0.
"""

from dataclasses import dataclass, replace

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One object that was found."""

    corners: Corners
    """In pixels of the image as it came."""
    label: int
    """Its class: a place among the classes, from 0."""
    score: float
    name: str = ""
    """Name of its class, where it is to be shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What a detector found on one image."""

    size: tuple[int, int]
    """Width and height of the image in pixels."""
    objects: tuple[Detection, ...]

    def scoring(self, least: float) -> "Detected":
        """Only the objects of score `least` or more."""
        return replace(self, objects=tuple(one for one in self.objects if one.score >= least))
