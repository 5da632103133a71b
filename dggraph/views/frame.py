"""What stands around the graph in a picture: heading and thumbnails above, legend below. Pixels, y downward."""

from dataclasses import dataclass

from dggraph.views.layout import MARGIN
from dggraph.views.lettering import fit, text_width
from dggraph.views.marks import AMBER, GREY, INK
from dggraph.views.picture import LegendEntry, Picture

THUMBNAIL, TITLE, FACT, LINE = 72.0, 14.0, 11.0, 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One line."""

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
    """The size of the whole picture and what stands around the graph."""

    width: float
    height: float
    top: float
    """Where the graph's own layout begins."""
    texts: tuple[Text, ...]
    samples: tuple[tuple[float, float, LegendEntry], ...]
    """(x, y, entry) of the legend: samples are 22 wide and centred at y."""
    images: tuple[tuple[float, float, float, float], ...]
    """(x, y, width, height) of each thumbnail."""


def make_frame(picture: Picture) -> Frame:
    """Place heading, thumbnails and legend; the warning's line is kept free where there is none, so that nothing moves."""
    entries = [entry._replace(text=fit(entry.text, FACT, 400)) for entry in picture.legend]
    width = max(picture.layout.width, 460.0, *(text_width(entry.text, FACT) + 60 for entry in entries))
    images = []
    x = MARGIN
    for image in picture.thumbnails:
        scale = THUMBNAIL / max(image.size)
        images.append((x, MARGIN, image.width * scale, image.height * scale))
        x += image.width * scale + 10
    texts = [Text(x=x, y=MARGIN + 13, text=fit(picture.title, TITLE, width - x - MARGIN), size=TITLE, colour=INK, is_bold=True)]
    y = MARGIN + 13
    for line, colour in [*((fact, GREY) for fact in picture.facts), (picture.warning, AMBER)]:
        y += LINE + 1
        if line:
            texts.append(Text(x=x, y=y, text=fit(line, FACT, width - x - MARGIN), size=FACT, colour=colour))
    top = max(y - (0 if picture.marks.weights else LINE), MARGIN + THUMBNAIL if images else 0.0)
    samples = []
    x, y = MARGIN, top + picture.layout.height + LINE
    for entry in entries:
        if x > MARGIN and x + 30 + text_width(entry.text, FACT) > width:
            x, y = MARGIN, y + LINE + 2
        samples.append((x, y - 4, entry))
        texts.append(Text(x=x + 28, y=y, text=entry.text, size=FACT, colour=GREY))
        x += 28 + text_width(entry.text, FACT) + 22
    return Frame(width=width, height=y + MARGIN, top=top, texts=tuple(texts), samples=tuple(samples), images=tuple(images))
