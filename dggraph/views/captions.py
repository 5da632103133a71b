"""The parts of a picture around the graph: heading and thumbnails above, legend below.

Units are pixels, y downward.
"""

from dataclasses import dataclass

from dggraph.views.annotations import AMBER, GREY, INK
from dggraph.views.escaping import fit, text_width, wrap
from dggraph.views.layout import MARGIN
from dggraph.views.picture import LegendEntry, Picture

THUMBNAIL, TITLE, FACT, LINE = 72.0, 14.0, 11.0, 16.0
WIDE, HIGH, BESIDE = 320.0, 216.0, 400.0
"""Largest size of an image with outlined objects, and least width of the heading beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One line of text."""

    x: float
    """Its left end."""
    y: float
    """Its baseline."""
    text: str
    size: float
    colour: str
    is_bold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The size of the picture, and the parts around the graph."""

    width: float
    height: float
    top: float
    """The top of the graph's layout."""
    texts: tuple[Text, ...]
    samples: tuple[tuple[float, float, LegendEntry], ...]
    """(x, y, entry) of each legend entry; samples are 22 pixels wide and centred at y."""
    images: tuple[tuple[float, float, float, float], ...]
    """(x, y, width, height) of each thumbnail."""


def fit_size(size: tuple[int, int], wide: float, high: float) -> tuple[float, float]:
    """Return the largest width and height of an image of `size` that fits in `wide` x `high`."""
    scale = min(wide / size[0], high / size[1])
    return size[0] * scale, size[1] * scale


def make_frame(picture: Picture) -> Frame:
    """Place heading, thumbnails and legend.

    The line of the warning is reserved even if there is no warning, so nothing else moves.
    """
    room = min(400.0, picture.layout.page - 2 * MARGIN - 28)
    entries = [entry._replace(text=fit(entry.text, FACT, room)) for entry in picture.legend]
    page = picture.layout.page
    width = max(
        picture.layout.width,
        min(460.0, page),
        *(min(text_width(entry.text, FACT) + 60, page) for entry in entries),
    )
    images, x, tall = _place_images(picture, page)
    is_above = tall > THUMBNAIL and x + BESIDE + MARGIN > page
    if tall > THUMBNAIL:
        width = max(width, x + MARGIN if is_above else x + BESIDE + MARGIN)
    x, y = (MARGIN, MARGIN + tall) if is_above else (x, 0.0)
    room = width - x - MARGIN
    y += MARGIN + 13
    texts = [
        Text(x=x, y=y, text=fit(picture.title, TITLE, room), size=TITLE, colour=INK, is_bold=True)
    ]
    for line, colour in [*((fact, GREY) for fact in picture.facts), (picture.warning, AMBER)]:
        for part in wrap(line, FACT, room):
            y += LINE + 1
            if part:
                texts.append(Text(x=x, y=y, text=part, size=FACT, colour=colour))
    top = max(y - (0 if picture.marks.weights else LINE), MARGIN + tall if images else 0.0)
    samples = []
    x, y = MARGIN, top + picture.layout.height + LINE
    for entry in entries:
        if x > MARGIN and x + 30 + text_width(entry.text, FACT) > width:
            x, y = MARGIN, y + LINE + 2
        samples.append((x, y - 4, entry))
        texts.append(Text(x=x + 28, y=y, text=entry.text, size=FACT, colour=GREY))
        x += 28 + text_width(entry.text, FACT) + 22
    return Frame(
        width=width,
        height=y + MARGIN,
        top=top,
        texts=tuple(texts),
        samples=tuple(samples),
        images=tuple(images),
    )


def _place_images(
    picture: Picture, page: float
) -> tuple[list[tuple[float, float, float, float]], float, float]:
    """Return the places of the thumbnails in a row, where it ends, and its height."""
    images, x, tall = [], MARGIN, 0.0
    widest = min(WIDE, (page - 2 * MARGIN) / max(1, len(picture.thumbnails)) - 10)
    for image, detected in picture.thumbnails:
        wide, high = (THUMBNAIL, THUMBNAIL) if detected is None else (widest, HIGH)
        images.append((x, MARGIN, *fit_size(image.size, wide, high)))
        x, tall = x + images[-1][2] + 10, max(tall, high)
    return images, x, tall
