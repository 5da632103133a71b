"""Read COCO's JSON completely, and check it before it is used for training or evaluation."""

import errno
import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dggraph.detection.box_entries import (
    Findings,
    OnBadBox,
    as_area,
    as_flag,
    as_whole,
    corners_of,
    file_of,
    label_of,
    other_place,
)
from dggraph.detection.box_sets import MAX_ID, Box, BoxImage, BoxSet
from dggraph.errors import InputError


def read_coco(annotations: Path, images: Path, *, on_bad: OnBadBox = "error") -> BoxSet:
    """Read a COCO file of object boxes.

    Ids and sizes may be written as text or as 3.0, and `iscrowd` as text, false or null, or be
    missing; these spellings are counted in `BoxSet.counts`.

    Args:
        annotations: the file, for example `annotations/instances_val2017.json`.
        images: the folder that its file names are relative to, for example `val2017`.
        on_bad: `skip` leaves out bad images and annotations and lists them in `BoxSet.skipped`;
            `error` raises an error that names the first of them.

    Raises:
        InputError: the file is not a COCO file, its categories are ambiguous, or its boxes are
            fractions or corners. With `on_bad="error"` also an image that is missing, listed twice
            or without a size, or an annotation of an unknown image or category, with the id of
            another annotation, whose `iscrowd` is neither 0 nor 1, or whose box is not four finite
            numbers, is empty, within one pixel or outside its image. The message names the file and
            the annotation.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from dggraph.detection import read_coco
        >>> Image.new("RGB", (40, 30)).save("1.png")
        >>> images = [{"id": 1, "file_name": "1.png", "width": 40, "height": 30}]
        >>> box = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 10, 20], "area": 200}
        >>> categories = [{"id": 7, "name": "cat"}]
        >>> document = {"images": images, "annotations": [box], "categories": categories}
        >>> written = Path("boxes.json").write_text(json.dumps(document))
        >>> read_coco(Path("boxes.json"), Path(".")).images[0].boxes[0].corners
        (1.0, 2.0, 11.0, 22.0)
    """
    content = _parse(annotations)
    findings = Findings(on_bad)
    ids, names = _categories(annotations, content["categories"], findings)
    place = {number: index for index, number in enumerate(ids)}
    entries: dict[int, tuple[str, Path, int, int]] = {}
    left_out: set[int] = set()
    for number, entry in enumerate(content["images"]):
        found = _image(entry, number, images, entries, findings)
        if found is not None:
            entries[found[0]] = found[1:]
        elif (
            isinstance(entry, dict)
            and (image_id := as_whole(entry.get("id"), Findings(on_bad))) is not None
        ):
            left_out.add(image_id)
    boxes: dict[int, list[Box]] = {image_id: [] for image_id in entries}
    seen: set[str] = set()
    for number, entry in enumerate(content["annotations"]):
        of_image = _annotation(
            entry, number, entries, left_out - set(entries), place, seen, findings
        )
        if of_image is not None:
            boxes[of_image[0]].append(of_image[1])
    findings.settle(str(annotations))
    found_images = tuple(
        BoxImage(
            name=name,
            file=file,
            image_id=image_id,
            width=width,
            height=height,
            boxes=tuple(boxes[image_id]),
        )
        for image_id, (name, file, width, height) in entries.items()
    )
    return BoxSet(
        name=annotations.name,
        classes=names,
        category_ids=ids,
        images=found_images,
        skipped=tuple(findings.problems),
        num_clipped=findings.num_clipped,
        counts={what: count for what, count in findings.counts.items() if count},
    )


def _parse(file: Path) -> dict[str, Any]:
    try:
        if file.exists() and not file.is_file():
            raise OSError(errno.EINVAL, "it is not a file")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read {file}: {error.strerror or error}. Give COCO's annotations, a JSON file."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is not JSON: {error}. It may have been cut off; fetch it again."
        ) from error
    keys = ("images", "annotations", "categories")
    missing = [
        key
        for key in keys
        if not isinstance(content, dict) or not isinstance(content.get(key), list)
    ]
    if missing:
        raise InputError(
            f"{file} has no list {missing[0]!r}, so it is not a COCO file of object boxes, which"
            f" has {', '.join(keys)}."
        )
    return dict(content)


def _categories(
    file: Path, entries: list[Any], findings: Findings
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    found: list[tuple[int, str]] = []
    for entry in entries:
        number = as_whole(entry.get("id"), findings) if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str):
            raise InputError(
                f"{file} has the category {entry!r}; a category needs an integer id and a name."
            )
        found.append((number, entry["name"]))
    found.sort(key=lambda pair: pair[0])
    for key, values in (
        ("id", [number for number, _ in found]),
        ("name", [name for _, name in found]),
    ):
        value, count = next(iter(Counter[Any](values).most_common(1)), (None, 0))
        if count > 1:
            raise InputError(
                f"{file}: {count} categories have the {key} {value!r}, so it is unclear which one"
                f" is meant. Give each a different {key}."
            )
    if not found:
        raise InputError(f"{file} lists no categories, so there is nothing to detect.")
    return tuple(number for number, _ in found), tuple(name for _, name in found)


def _image(
    entry: Any, number: int, folder: Path, known: Mapping[int, object], findings: Findings
) -> tuple[int, str, Path, int, int] | None:
    what = f"image {label_of(entry, number)}"
    image_id = as_whole(entry.get("id"), findings) if isinstance(entry, dict) else None
    if image_id is None or not isinstance(entry.get("file_name"), str):
        too_large = (
            isinstance(entry, dict)
            and isinstance(entry.get("id"), int)
            and abs(entry["id"]) > MAX_ID
        )
        findings.note(
            f"{what} has an id beyond {MAX_ID}"
            if too_large
            else f"{what} needs an integer id and a file_name"
        )
        return None
    name, sides = entry["file_name"], (entry.get("width"), entry.get("height"))
    if image_id in known:
        findings.note(f"{what} ({name!r}) has an id that is already used")
        return None
    width, height = (as_whole(side, findings) for side in sides)
    if width is None or height is None or min(width, height) < 1:
        findings.note(f"{what} ({name!r}) has the size {sides[0]!r} x {sides[1]!r}")
        return None
    file = file_of(folder, name)
    if file is None:
        findings.note(
            f"{what}: there is no file {name[:300]!r} in {folder}{other_place(folder, name)}"
        )
        return None
    return image_id, name, file, width, height


def _annotation(
    entry: Any,
    number: int,
    images: Mapping[int, tuple[str, Path, int, int]],
    left_out: Collection[int],
    place: Mapping[int, int],
    seen: set[str],
    findings: Findings,
) -> tuple[int, Box] | None:
    """Return the image id and the box of an annotation, or None if it is bad.

    A bad annotation is noted, unless its image is already noted as bad.
    """
    what = f"annotation {label_of(entry, number)}"
    if not isinstance(entry, dict):
        findings.note(f"{what} is not a JSON object")
        return None
    image_id, key = (
        as_whole(entry.get("image_id"), findings),
        repr(entry.get("id", f"at index {number}")),
    )
    if image_id in left_out:
        return None
    if image_id is None or image_id not in images:
        findings.note(f"{what} belongs to image {entry.get('image_id')!r}, which is not listed")
        return None
    name, _, width, height = images[image_id]
    what += f" of {name!r}"
    if key in seen:
        findings.note(f"{what} has an id that is already used")
        return None
    seen.add(key)
    category = as_whole(entry.get("category_id"), findings)
    if category is None or category not in place:
        findings.note(f"{what} has category {entry.get('category_id')!r}, which is not listed")
        return None
    is_crowd = as_flag(entry.get("iscrowd"), findings)
    if is_crowd is None:
        findings.note(f"{what} has iscrowd {entry['iscrowd']!r}, which is neither 0 nor 1")
        return None
    corners = corners_of(
        entry.get("bbox"), "xywh", (width, height), what, findings, area=entry.get("area")
    )
    if corners is None:
        return None
    return image_id, Box(
        corners=corners,
        label=place[category],
        area=as_area(entry.get("area"), corners, findings),
        is_crowd=is_crowd,
    )
