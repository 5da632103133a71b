"""Sets of images with boxes, in COCO's JSON or VOC's XML, read whole and checked before anything is trained or judged on them.

Boxes are (left, top, right, bottom) in pixels, from 0. Classes count from 0 in the order of their COCO ids; identifiers of annotations
are not kept, since files in the wild begin them at 0, which COCO's evaluation takes for "no match".
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from dggraph.errors import InputError

OnBadBox = Literal["error", "skip"]
SHOWN = 5
MAX_NUMBER, MAX_DIGITS = 1e15, 10
"""Beyond any image: what is larger makes no sense, and no float or int of Python's reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One object."""

    corners: tuple[float, float, float, float]
    """Left, top, right, bottom, within the image."""
    label: int
    """Index into `BoxSet.classes`."""
    area: float
    """Of its mask where there is one, else of the box; decides between small, medium and large."""
    is_crowd: bool = False
    """Stands for many objects: neither learned nor counted as missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxImage:
    """One image and what is on it."""

    name: str
    """As the annotations have it."""
    file: Path
    image_id: int
    width: int
    height: int
    boxes: tuple[Box, ...]


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

    @property
    def learnable(self) -> tuple[BoxImage, ...]:
        """Images with at least one box that is no crowd: without one there is nothing to learn a place from."""
        return tuple(image for image in self.images if any(not box.is_crowd for box in image.boxes))


@dataclass(slots=True)
class _Findings:
    """What is wrong so far, and what is to be done about it."""

    on_bad: OnBadBox
    problems: list[str] = field(default_factory=list)
    num_clipped: int = 0

    def note(self, problem: str) -> None:
        self.problems.append(problem)

    def settle(self, name: str) -> None:
        if self.problems and self.on_bad == "error":
            shown, rest = self.problems[:SHOWN], len(self.problems) - SHOWN
            more = f"; and {rest} more" if rest > 0 else ""
            raise InputError(
                f"{name} has {len(self.problems)} bad entries: {'; '.join(shown)}{more}. Mend them, or leave them out with 'skip'."
            )


def read_coco(annotations: Path, images: Path, *, on_bad: OnBadBox = "error") -> BoxSet:
    """Read a COCO file of object boxes.

    Args:
        annotations: for example `annotations/instances_val2017.json`.
        images: the folder that its file names begin in, for example `val2017`.
        on_bad: `skip` leaves out bad images and annotations and says so in `BoxSet.skipped`; `error` raises for the first ones.

    Raises:
        InputError: the file is no COCO file, or its categories are ambiguous; with `on_bad="error"` also an image that is missing, listed
            twice or without a size, or an annotation of an unknown image or category, with the id of another one, or whose box is not four
            finite numbers, is empty or lies outside its image. Names the file and the annotation.
    """
    content = _parse(annotations)
    ids, names = _categories(annotations, content["categories"])
    findings, place = _Findings(on_bad), {number: index for index, number in enumerate(ids)}
    entries: dict[int, tuple[str, int, int]] = {}
    for number, entry in enumerate(content["images"]):
        found = _image(entry, number, images, entries, findings)
        if found is not None:
            entries[found[0]] = found[1:]
    boxes: dict[int, list[Box]] = {image_id: [] for image_id in entries}
    left_out = {entry["id"] for entry in content["images"] if isinstance(entry, dict) and type(entry.get("id")) is int} - set(
        entries
    )
    seen: set[str] = set()
    for number, entry in enumerate(content["annotations"]):
        of_image = _annotation(entry, number, entries, left_out, place, seen, findings)
        if of_image is not None:
            boxes[of_image[0]].append(of_image[1])
    findings.settle(str(annotations))
    found_images = tuple(
        BoxImage(name=name, file=images / name, image_id=image_id, width=width, height=height, boxes=tuple(boxes[image_id]))
        for image_id, (name, width, height) in entries.items()
    )
    return BoxSet(
        name=annotations.name,
        classes=names,
        category_ids=ids,
        images=found_images,
        skipped=tuple(findings.problems),
        num_clipped=findings.num_clipped,
    )


def read_voc(
    annotations: Path,
    images: Path,
    *,
    classes: Iterable[str] | None = None,
    stems: Collection[str] | None = None,
    on_bad: OnBadBox = "error",
) -> BoxSet:
    """Read a folder of VOC XML files. Objects marked `difficult` count as crowds: neither learned nor missed.

    Args:
        annotations: the folder `Annotations`.
        images: the folder `JPEGImages`.
        classes: names in order; by default those found in the whole folder, sorted.
        stems: names of the XML files to read, without suffix; by default all.
        on_bad: as for `read_coco`.

    Raises:
        InputError: there is no XML file; or as for `read_coco`.
    """
    files = sorted(annotations.glob("*.xml"))
    if not files:
        raise InputError(
            f"there is no XML file in {annotations}. VOC's annotations are a file an image, in the folder Annotations."
        )
    findings, roots = _Findings(on_bad), {}
    for file in files:
        try:
            roots[file] = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, ValueError) as error:
            if stems is None or file.stem in stems:
                findings.note(f"{file.name} is no XML: {error}")
    given = (
        tuple(classes)
        if classes is not None
        else tuple(sorted({_text(one, "name") for root in roots.values() for one in root.iter("object") if _text(one, "name")}))
    )
    place = {name: index for index, name in enumerate(given)}
    found: list[BoxImage] = []
    for image_id, (file, root) in enumerate(roots.items(), start=1):
        if stems is not None and file.stem not in stems:
            continue
        name = _text(root, "filename") or f"{file.stem}.jpg"
        width, height = (_whole(_text(root, f"size/{side}")) for side in ("width", "height"))
        if not _is_within(images, name) or not (images / name).is_file():
            findings.note(f"{file.name}: there is no image {name!r} in {images}")
            continue
        if width is None or height is None:
            findings.note(f"{file.name}: the size of {name!r} is not two positive whole numbers")
            continue
        boxes = []
        for number, one in enumerate(root.iter("object")):
            what, label = f"{file.name}: object {number}", _text(one, "name")
            if label not in place:
                findings.note(f"{what} is {label!r}, which is none of the classes")
                continue
            sides = [_float(_text(one, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
            corners = _corners(sides, "xyxy", width, height, what, findings)
            if corners is not None:
                is_difficult = _text(one, "difficult") == "1"
                boxes.append(Box(corners=corners, label=place[label], area=_area(corners), is_crowd=is_difficult))
        found.append(BoxImage(name=name, file=images / name, image_id=image_id, width=width, height=height, boxes=tuple(boxes)))
    findings.settle(str(annotations))
    return BoxSet(
        name=annotations.name,
        classes=given,
        category_ids=tuple(range(1, len(given) + 1)),
        images=tuple(found),
        skipped=tuple(findings.problems),
        num_clipped=findings.num_clipped,
    )


def _parse(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}. Give COCO's annotations, a JSON file.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}. It may have been cut off; fetch it again.") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise InputError(f"{file} has no list {missing[0]!r}, so it is no COCO file of object boxes, which has {', '.join(keys)}.")
    return dict(content)


def _categories(file: Path, entries: list[Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise InputError(f"{file}: a category is {entry!r}; it needs a whole number as id and a name.")
    ordered = sorted(entries, key=lambda entry: entry["id"])
    for key in ("id", "name"):
        value, count = next(iter(Counter(entry[key] for entry in ordered).most_common(1)), (None, 0))
        if count > 1:
            raise InputError(
                f"{file}: {count} categories have the {key} {value!r}, so it is unclear which one is meant. Number them anew."
            )
    if not ordered:
        raise InputError(f"{file} lists no categories, so there is nothing to detect.")
    return tuple(entry["id"] for entry in ordered), tuple(entry["name"] for entry in ordered)


def _image(
    entry: Any, number: int, folder: Path, known: Mapping[int, object], findings: _Findings
) -> tuple[int, str, int, int] | None:
    what = f"image {_id_of(entry, number)}"
    if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("file_name"), str):
        findings.note(f"{what} lacks a whole number as id or a file_name")
        return None
    image_id, name, sides = entry["id"], entry["file_name"], (entry.get("width"), entry.get("height"))
    if image_id in known:
        findings.note(f"{what} ({name!r}) has an id that another one has")
        return None
    if any(type(side) is not int or side < 1 for side in sides):
        findings.note(f"{what} ({name!r}) has the size {sides[0]!r} x {sides[1]!r}")
        return None
    if not _is_within(folder, name) or not (folder / name).is_file():
        findings.note(f"{what}: there is no file {name!r} in {folder}")
        return None
    return image_id, name, int(entry["width"]), int(entry["height"])


def _annotation(
    entry: Any,
    number: int,
    images: Mapping[int, tuple[str, int, int]],
    left_out: Collection[int],
    place: Mapping[int, int],
    seen: set[str],
    findings: _Findings,
) -> tuple[int, Box] | None:
    """Its image and its box; None, and a note unless its image has one, where it is bad."""
    what = f"annotation {_id_of(entry, number)}"
    if not isinstance(entry, dict):
        findings.note(f"{what} is no object")
        return None
    image_id, category, key = entry.get("image_id"), entry.get("category_id"), repr(entry.get("id", f"at place {number}"))
    if type(image_id) is int and image_id in left_out:
        return None
    if type(image_id) is not int or image_id not in images:
        findings.note(f"{what} is of image {image_id!r}, which is not listed")
        return None
    name, width, height = images[image_id]
    what += f" of {name!r}"
    if key in seen:
        findings.note(f"{what} has an id that another one has")
        return None
    seen.add(key)
    if type(category) is not int or category not in place:
        findings.note(f"{what} has category {category!r}, which is not listed")
        return None
    corners = _corners(entry.get("bbox"), "xywh", width, height, what, findings)
    if corners is None:
        return None
    area = entry.get("area")
    known = float(area) if isinstance(area, int | float) and _is_number(area) and area > 0 else _area(corners)
    return image_id, Box(corners=corners, label=place[category], area=known, is_crowd=bool(entry.get("iscrowd", 0)))


def _corners(
    values: Any, form: Literal["xywh", "xyxy"], width: int, height: int, what: str, findings: _Findings
) -> tuple[float, float, float, float] | None:
    """Within the image; None, and a note, where there is no such box."""
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(_is_number(value) for value in values):
        findings.note(f"{what} has the box {values!r}, which is not four finite numbers")
        return None
    left, top, right, bottom = (float(value) for value in values)
    if form == "xywh":
        right, bottom = left + right, top + bottom
    if right <= left or bottom <= top:
        findings.note(f"{what} has an empty box, {right - left:g} x {bottom - top:g}")
        return None
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        findings.note(f"{what} has a box outside its image of {width} x {height}")
        return None
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    findings.num_clipped += inside != (left, top, right, bottom)
    return inside


def _area(corners: tuple[float, float, float, float]) -> float:
    left, top, right, bottom = corners
    return (right - left) * (bottom - top)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _is_within(folder: Path, name: str) -> bool:
    """Names come with the data: one must not lead out of its folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def _id_of(entry: Any, number: int) -> str:
    return repr(entry["id"]) if isinstance(entry, dict) and "id" in entry else f"at place {number}"


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < MAX_DIGITS and int(text) > 0 else None
