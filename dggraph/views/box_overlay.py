"""Detected objects drawn on their image: an outline, and a tag with class and score.

Contrasting rims keep both legible on any photo. Units are pixels, y downward.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dggraph.graph.detection import Detected, Detection
from dggraph.views.annotations import FIRST, INK, SECOND
from dggraph.views.escaping import fit, for_xml, plural, text_width

WHITE = "#ffffff"
COLOURS = (
    ("#56b4e9", INK),
    ("#f0e442", INK),
    ("#00805e", WHITE),
    ("#cc79a7", INK),
    ("#000000", WHITE),
    ("#e69f00", INK),
    (SECOND, WHITE),
    (FIRST, WHITE),
)
"""Outline colours per class, in turn, each with a contrasting colour for its rim and its tag.

People with colour blindness can distinguish them.
"""
STROKE, RIM = 2.0, 4.0
TAG, TAG_HEIGHT, TAG_PAD = 10.0, 14.0, 4.0
NUM_TOLD, NAME_WIDTH = 5, 130.0

Rectangle = tuple[float, float, float, float]
"""x, y, width, height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A detected object at its position in the picture."""

    place: Rectangle
    tag: Rectangle
    text: str
    """The text of the tag."""
    colour: str
    contrast: str


def place_outlines(detected: Detected, image: Rectangle) -> tuple[Outline, ...]:
    """Return the outlines on an image that is drawn in the rectangle `image`.

    The highest scores come last, so they are drawn on top. A tag stays within the image, at the
    corner of its outline where it covers the least of other tags.
    """
    outlines: list[Outline] = []
    for one in sorted(detected.objects, key=lambda one: -one.score):
        place, text = _scale(one, detected.size, image), _tell(one, width=image[2] - 2 * TAG_PAD)
        size = min(text_width(text, TAG) + 2 * TAG_PAD, image[2]), TAG_HEIGHT
        tag = min(
            _tag_places(place, size, image),
            key=lambda tag: sum(_overlap(tag, other.tag) for other in outlines),
        )
        colour, contrast = COLOURS[one.label % len(COLOURS)]
        outlines.append(Outline(place=place, tag=tag, text=text, colour=colour, contrast=contrast))
    return tuple(reversed(outlines))


def write_outlines(outlines: tuple[Outline, ...]) -> Iterator[str]:
    """Yield the outlines as SVG elements."""
    yield '<g class="objects" fill="none" stroke-linejoin="round">'
    for one in outlines:
        yield f'<rect {_attributes(one.place)} stroke="{one.contrast}" stroke-width="{RIM:g}"/>'
        yield (
            f'<rect {_attributes(one.place)} stroke="{one.colour}"'
            f' stroke-width="{STROKE:g}"><title>{for_xml(one.text)}</title></rect>'
        )
    yield "</g>"
    yield f'<g class="tags" font-size="{TAG:g}" text-anchor="middle">'
    for one in outlines:
        x, y, width, _ = one.tag
        yield f'<rect {_attributes(one.tag)} rx="2" fill="{one.colour}" stroke="{one.contrast}"/>'
        yield (
            f'<text x="{x + width / 2:.1f}" y="{y + 10.5:.1f}"'
            f' fill="{one.contrast}">{for_xml(one.text)}</text>'
        )
    yield "</g>"


def tell_objects(detected: Detected) -> str:
    """Return for example `3 objects: bird 0.98, tree 0.91, tree 0.55`.

    The highest scores come first, at most `NUM_TOLD` of them.
    """
    number = len(detected.objects)
    best = sorted(detected.objects, key=lambda one: -one.score)[:NUM_TOLD]
    more = f" and {number - NUM_TOLD} more" if number > NUM_TOLD else ""
    return (
        f"{plural(number, 'object')}:"
        f" {', '.join(_tell(one, width=NAME_WIDTH) for one in best)}{more}"
        if number
        else "no objects"
    )


def _tell(one: Detection, *, width: float) -> str:
    """Return class and score, without the middle of a name that is too long."""
    score = f" {one.score:.2f}"
    return fit(one.name, TAG, width - text_width(score, TAG)) + score


def _scale(one: Detection, size: tuple[int, int], image: Rectangle) -> Rectangle:
    left, top, right, bottom = one.corners
    x, y, width, height = image
    across, down = width / size[0], height / size[1]
    return x + left * across, y + top * down, (right - left) * across, (bottom - top) * down


def _tag_places(
    place: Rectangle, size: tuple[float, float], image: Rectangle
) -> Iterator[Rectangle]:
    """Yield the possible positions of a tag of `size`, the preferred one first.

    They are above, below and inside the outline, aligned at its left and then at its right.
    """
    (x, y, across, down), (width, height) = place, size
    for left in (x, x + across - width):
        for top in (y - height, y + down, y, y + down - height):
            yield (
                min(max(left, image[0]), image[0] + image[2] - width),
                min(max(top, image[1]), max(image[1], image[1] + image[3] - height)),
                width,
                height,
            )


def _overlap(one: Rectangle, other: Rectangle) -> float:
    """Return the area that both cover."""
    across, down = (
        min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1)
    )
    return max(0.0, across) * max(0.0, down)


def _attributes(place: Rectangle) -> str:
    return " ".join(
        f'{name}="{value:.1f}"'
        for name, value in zip(("x", "y", "width", "height"), place, strict=True)
    )
