"""What entries of annotation files say, number by number: whole numbers, flags and corners; and
what is wrong, gathered for one message.
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
"""Beyond any image: what is larger makes no sense, and no float or int of Python's reading."""
MAX_DIGITS = 20
AS_WHOLE = "numbers written as text or with .0, read as whole ones"
AS_FLAG = "flags written as text, read as 0 or 1"
OWN_AREA = "areas that are not numbers above 0, where the box's own was taken"
FLAGS = {"": False, "0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
SURPLUS_PIXELS, SURPLUS_FRACTION = 2.0, 0.02
"""How far rounding lets a box reach over the edge of its image; more is no rounding."""
NEARLY_ALL = 0.95


@dataclass(slots=True)
class Findings:
    """What is wrong so far, what was read as one might not expect, and how boxes are written."""

    on_bad: OnBadBox
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    num_clipped: int = 0
    num_boxes: int = 0
    num_fractions: int = 0
    """Within the first pixel of their image."""
    num_like_corners: int = 0
    """Whose last two numbers would fit as the right and the bottom edge."""
    num_far_over: int = 0
    """Which reach over the edge of their image by more than rounding does."""
    areas: Counter[str] = field(default_factory=Counter)
    """Which reading an area says is right."""

    def note(self, problem: str) -> None:
        self.problems.append(problem)

    def settle(self, name: str) -> None:
        """
        Raises:
            InputError: all boxes are written in another way than they are read, or entries are bad
                and that is an error.
        """
        if self.num_boxes and self.num_fractions == self.num_boxes:
            raise InputError(
                f"{name}: all {self.num_boxes} boxes have numbers from 0 to 1, so they are"
                " fractions of their images, but pixels are read. Multiply them by width and"
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
                    f" of {self.num_boxes} fit so; as left, top, width, height {self.num_far_over}"
                    " reach far over the edge of their image), but COCO's bbox is left, top,"
                    " width, height. Subtract the first two numbers from the last two."
                )
        if self.problems and self.on_bad == "error":
            shown, rest = self.problems[:SHOWN], len(self.problems) - SHOWN
            more = f"; and {rest} more" if rest > 0 else ""
            raise InputError(
                f"{name} has {len(self.problems)} bad entries: {'; '.join(shown)}{more}. Mend them,"
                " or leave them out with 'skip'."
            )


def as_whole(value: Any, findings: Findings) -> int | None:
    """A whole number below 2**63, which converters also write as text or as 3.0; None for anything
    else.
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
    """0 or 1, which converters also write as false, "0", 0.0 or null, or leave out; None for
    anything else.
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
    """`value` where it is a number above 0, else that of the box; a missing one is no surprise."""
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
    """Left, top, right, bottom within an image of `size`; None, and a note, where there is no such
    box.

    Args:
        values: four numbers.
        form: `xywh` is left, top, width, height.
        size: width and height of the image.
        what: how the entry is called in a note.
        findings: for notes.
        area: what the entry says it is.
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
            f"{what} has the box {list(values)!r}, which is within one pixel, as if it were written"
            " in fractions of the image"
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
    """Whether the last two numbers may be the right and the bottom edge."""
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
    """Finite, and within reason."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER
    )


def file_of(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, however its letters are composed; None where there is none, or
    the name leads out of the folder.
    """
    if (
        Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name
    ):  # names come with the data
        return None
    spellings = dict.fromkeys((name, normalize("NFC", name), normalize("NFD", name)))
    try:
        return next(
            (folder / spelling for spelling in spellings if (folder / spelling).is_file()), None
        )
    except OSError:  # a name longer than the system's longest
        return None


def other_place(folder: Path, name: str) -> str:
    """For a message: where a file of this name is, if the folders before it are wrong, as where
    Windows wrote them.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    return (
        f", but there is {last!r}"
        if last != name and last and file_of(folder, last) is not None
        else ""
    )


def label_of(entry: Any, number: int) -> str:
    """How an entry is called in a message."""
    return repr(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at place {number}"
