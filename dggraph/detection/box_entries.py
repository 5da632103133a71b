"""Read entries of annotation files: whole numbers, flags and corners.

Everything that is wrong is collected for a single message.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize

from dggraph.detection.box_sets import MAX_ID
from dggraph.errors import InputError
from dggraph.graph.detection import Corners

OnBadBox = Literal["error", "skip"]
SHOWN = 5
MAX_NUMBER = 1e15
"""Larger than any image; larger numbers make no sense, and Python may not convert them."""
MAX_DIGITS = 20
AS_WHOLE = "numbers written as text or with .0, read as integers"
AS_FLAG = "flags written as text, read as 0 or 1"
OWN_AREA = "areas that are not numbers above 0, replaced by the area of the box"
FLAGS = {"": False, "0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
SURPLUS_PIXELS, SURPLUS_FRACTION = 2.0, 0.02
"""How far a box may reach over the edge of its image by rounding, in pixels and as a fraction."""
NEARLY_ALL = 0.95


@dataclass(slots=True)
class Findings:
    """Problems so far, unusual spellings, and the way in which boxes are written."""

    on_bad: OnBadBox
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_clipped: int = 0
    num_boxes: int = 0
    num_fractions: int = 0
    """Boxes within the first pixel of their image."""
    num_like_corners: int = 0
    """Boxes whose last two numbers could be the right and the bottom edge."""
    num_far_over: int = 0
    """Boxes that reach over the edge of their image by more than rounding does."""
    areas: Counter[str] = field(default_factory=Counter)
    """How often an annotated area fits each reading of its box."""

    def note(self, problem: str) -> None:
        """Record a bad entry."""
        self.problems.append(problem)

    def settle(self, name: str) -> None:
        """Raise an error if the file cannot be used.

        Args:
            name: name of the file in the message.

        Raises:
            InputError: all boxes are written in another form than the expected one, or entries are
                bad and `on_bad` is `error`.
        """
        if self.num_boxes and self.num_fractions == self.num_boxes:
            raise InputError(
                f"{name}: all {self.num_boxes} boxes have numbers from 0 to 1, so they are"
                " fractions of their images, but pixels are expected. Multiply them by width and"
                " height."
            )
        is_said = self.areas["corners"] and not self.areas["sizes"]
        if (
            self.num_boxes
            and self.num_like_corners >= NEARLY_ALL * self.num_boxes
            and not self.areas["sizes"]
        ):
            if self.num_far_over or is_said:
                raise InputError(
                    f"{name}: its boxes look like left, top, right, bottom ({self.num_like_corners}"
                    f" of {self.num_boxes} fit this form; read as left, top, width, height,"
                    f" {self.num_far_over} reach far over the edge of their image), but COCO's bbox"
                    " is left, top, width, height. Subtract the first two numbers from the last"
                    " two."
                )
        if self.problems and self.on_bad == "error":
            shown, rest = self.problems[:SHOWN], len(self.problems) - SHOWN
            more = f"; and {rest} more" if rest > 0 else ""
            raise InputError(
                f"{name} has {len(self.problems)} bad entries: {'; '.join(shown)}{more}. Fix them,"
                " or leave them out with 'skip'."
            )


def as_whole(value: Any, findings: Findings) -> int | None:
    """Return an integer of at most 63 bits, or None for any other value.

    Converters also write it as text or as 3.0.
    """
    number: int | None = None
    if type(value) is int:
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    elif isinstance(value, str) and len(text := value.strip()) <= MAX_DIGITS:
        text = text.removesuffix(".0")
        number = int(text) if text.removeprefix("-").isdecimal() else None
    if number is None or abs(number) > MAX_ID:
        return None
    findings.counts[AS_WHOLE] += type(value) is not int
    return number


def as_flag(value: Any, findings: Findings) -> bool | None:
    """Return a flag, 0 or 1, or None for any other value.

    Converters also write it as false, "0", 0.0 or null, or omit it.
    """
    if isinstance(value, str):
        found = FLAGS.get(value.strip().lower())
        findings.counts[AS_FLAG] += found is not None
        return found
    return (
        bool(value)
        if value is None or (isinstance(value, int | float) and value in (0, 1))
        else None
    )


def as_area(value: Any, corners: Corners, findings: Findings) -> float:
    """Return `value` if it is a number above 0, else the area of the box.

    A missing value is not counted as a problem.
    """
    left, top, right, bottom = corners
    try:
        number = (
            float(value)
            if isinstance(value, int | float | str) and not isinstance(value, bool)
            else 0.0
        )
    except (ValueError, OverflowError):
        number = 0.0
    if 0 < number < MAX_NUMBER:
        return number
    findings.counts[OWN_AREA] += value is not None
    return (right - left) * (bottom - top)


def corners_of(
    values: Any,
    form: Literal["xywh", "xyxy"],
    size: tuple[int, int],
    what: str,
    findings: Findings,
    *,
    area: Any = None,
) -> Corners | None:
    """Return left, top, right, bottom within an image of `size`, or None and a note.

    Args:
        values: four numbers.
        form: `xywh` is left, top, width, height.
        size: width and height of the image.
        what: name of the entry in a note.
        findings: takes notes.
        area: the area that the entry states.
    """
    if (
        not isinstance(values, list | tuple)
        or len(values) != 4
        or not all(is_number(value) for value in values)
    ):
        findings.note(f"{what} has the box {values!r}, which is not four finite numbers")
        return None
    left, top, right, bottom = (float(value) for value in values)
    findings.num_boxes += 1
    if all(0 <= value <= 1 for value in values):
        findings.num_fractions += 1
        findings.note(
            f"{what} has the box {list(values)!r}, which is within one pixel, as if it were in"
            " fractions of the image"
        )
        return None
    if form == "xywh":
        _compare(values, size, area, findings)
        right, bottom = left + right, top + bottom
    width, height = size
    if right <= left or bottom <= top:
        findings.note(f"{what} has an empty box, {right - left:g} x {bottom - top:g}")
        return None
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        findings.note(f"{what} has a box outside its image of {width} x {height}")
        return None
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    findings.num_clipped += inside != (left, top, right, bottom)
    return inside


def _compare(values: Sequence[float], size: tuple[int, int], area: Any, findings: Findings) -> None:
    """Count whether the last two numbers may be the right and the bottom edge."""
    (left, top, third, fourth), (width, height) = values, size
    findings.num_like_corners += 0 <= left < third <= width + 1 and 0 <= top < fourth <= height + 1
    over = (left + third - width) / width, (top + fourth - height) / height
    surplus = left + third - width, top + fourth - height
    findings.num_far_over += any(
        far > SURPLUS_FRACTION and pixels > SURPLUS_PIXELS
        for far, pixels in zip(over, surplus, strict=True)
    )
    if is_number(area) and area > 0:
        fits = {
            reading: math.isclose(area, product, rel_tol=0.01)
            for reading, product in (
                ("sizes", third * fourth),
                ("corners", (third - left) * (fourth - top)),
            )
        }
        findings.areas.update(
            [reading for reading, is_fit in fits.items() if is_fit and sum(fits.values()) == 1]
        )


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number of plausible size."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    )


def file_of(folder: Path, name: str) -> Path | None:
    """Return the file `name` in `folder`, in any Unicode composition of its letters.

    Returns None if there is no file, or if the name leads out of the folder.
    """
    # Names come with the data and are not trusted.
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        return None
    spellings = dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name)))
    try:
        return next(
            (folder / spelling for spelling in spellings if (folder / spelling).is_file()), None
        )
    except OSError:  # the name is too long for the file system
        return None


def other_place(folder: Path, name: str) -> str:
    """Return text for a message about a file whose folders are wrong, as Windows may write them.

    It names the file of this name in `folder`, and is empty if there is none.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    return (
        f", but there is {last!r}"
        if last != name and last and file_of(folder, last) is not None
        else ""
    )


def label_of(entry: Any, number: int) -> str:
    """Return the name of an entry in a message."""
    return repr(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at index {number}"
