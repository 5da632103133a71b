"""The objects that a detector finds in an image.

Everywhere in dggraph a label is an index into the classes, from 0.
"""

from dataclasses import dataclass, replace

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One object that was found."""

    corners: Corners
    """In pixels of the original image."""
    label: int
    """Its class, as an index from 0."""
    score: float
    name: str = ""
    """The name of its class, or an empty string if it is not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """The objects that a detector found in one image."""

    size: tuple[int, int]
    """Width and height of the image in pixels."""
    objects: tuple[Detection, ...]

    def scoring(self, least: float) -> "Detected":
        """Return a copy with only the objects of score `least` or more."""
        return replace(self, objects=tuple(one for one in self.objects if one.score >= least))
