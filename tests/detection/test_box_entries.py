"""Numbers, flags and corners as converters write them; boxes that are written in another way
altogether.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dggraph.detection.box_entries import (
    AS_FLAG,
    AS_WHOLE,
    OWN_AREA,
    Findings,
    as_flag,
    as_whole,
    file_of,
)
from dggraph.detection.box_sets import Box, BoxImage, BoxSet, refuse_bad_boxes
from dggraph.detection.coco import read_coco
from dggraph.errors import InputError

Content = dict[str, Any]
BOXES = [[4, 6, 20, 18], [28, 11, 20, 18], [30, 2, 30, 40], [1, 1, 8, 30]]


def written(
    folder: Path,
    change: Callable[[Content], object] = lambda _: None,
    boxes: list[Any] | None = None,
) -> BoxSet:
    """One image of 64 x 48 with some boxes, read."""
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    content: Content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [],
    }
    content["categories"] = [{"id": 1, "name": "thing"}]
    for number, box in enumerate(BOXES if boxes is None else boxes):
        content["annotations"].append({"id": number, "image_id": 1, "category_id": 1, "bbox": box})
    change(content)
    (folder / "boxes.json").write_text(json.dumps(content))
    return read_coco(folder / "boxes.json", folder, on_bad="skip")


def setting(key: str, value: Any) -> Callable[[Content], object]:
    return lambda content: content["annotations"][0].__setitem__(key, value)


@pytest.mark.parametrize("value", [0, False, 0.0, None, "0", "", " 0 ", "false", "0.0"])
def test_no_crowd_however_it_is_written(tmp_path: Path, value: Any) -> None:
    found = written(tmp_path, setting("iscrowd", value))
    assert [box.is_crowd for box in found.images[0].boxes] == [False] * 4
    assert not found.skipped
    assert found.counts == ({AS_FLAG: 1} if isinstance(value, str) else {})


@pytest.mark.parametrize("value", [1, True, 1.0, "1", "TRUE"])
def test_a_crowd_however_it_is_written(tmp_path: Path, value: Any) -> None:
    assert written(tmp_path, setting("iscrowd", value)).images[0].boxes[0].is_crowd


@pytest.mark.parametrize("value", [2, -1, 0.5, "maybe", [], {}, float("nan")])
def test_what_is_neither_a_crowd_nor_none(tmp_path: Path, value: Any) -> None:
    (problem,) = written(tmp_path, setting("iscrowd", value)).skipped
    assert "annotation 0 of 'a.png' has iscrowd" in problem
    assert "neither 0 nor 1" in problem


def test_whole_numbers_as_converters_write_them() -> None:
    findings = Findings("error")
    assert [
        as_whole(value, findings) for value in (3, "3", 3.0, " 3 ", "3.0", "-3", 2**63 - 1)
    ] == [3, 3, 3, 3, 3, -3, 2**63 - 1]
    assert findings.counts == {AS_WHOLE: 5}
    strange = (
        None,
        True,
        "",
        "x",
        "3.5",
        3.5,
        float("nan"),
        float("inf"),
        2**63,
        "9" * 5000,
        [3],
        "³",
    )
    assert [as_whole(value, findings) for value in strange] == [None] * len(strange)
    assert as_flag(None, findings) is False
    assert as_flag([], findings) is None


def test_ids_and_sizes_as_text_mean_the_same(tmp_path: Path) -> None:
    def change(content: Content) -> None:
        for one in content["annotations"]:
            one |= {"image_id": str(one["image_id"]), "category_id": float(one["category_id"])}
        content["images"][0] |= {"id": "1", "width": "64", "height": 48.0}

    plain, found = written(tmp_path), written(tmp_path, change)
    assert found.images == plain.images
    assert found.counts == {AS_WHOLE: 11}
    assert not found.skipped


@pytest.mark.parametrize(
    ("value", "area"),
    [("12.5", 12.5), (7, 7), ("big", 360), (0, 360), (-1, 360), (float("nan"), 360), ([], 360)],
)
def test_areas(tmp_path: Path, value: Any, area: float) -> None:
    found = written(tmp_path, setting("area", value))
    assert found.images[0].boxes[0].area == area
    assert found.counts == ({OWN_AREA: 1} if area == 360 else {})


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_fractions_of_the_image_are_refused_whatever_is_asked_for(
    tmp_path: Path, scale: float
) -> None:
    boxes = [
        [scale * side / edge for side, edge in zip(box, (64, 48, 64, 48), strict=True)]
        for box in BOXES
    ]
    with pytest.raises(
        InputError, match=r"all 4 boxes have numbers from 0 to 1.*Multiply them by width and height"
    ):
        written(tmp_path, boxes=boxes)
    found = written(tmp_path, boxes=[*BOXES, boxes[0]])
    assert "annotation 4 of 'a.png'" in found.skipped[0]
    assert "in fractions of the image" in found.skipped[0]
    assert len(found.skipped) == 1


def test_corners_written_as_sizes_are_refused(tmp_path: Path) -> None:
    corners = [[left, top, left + width, top + height] for left, top, width, height in BOXES]
    with pytest.raises(
        InputError,
        match=r"look like left, top, right, bottom \(4 of 4 fit this form.*Subtract the first two",
    ):
        written(tmp_path, boxes=corners)
    near = [
        [left, top, left + 9, top + 9] for left, top in ((2, 3), (9, 8), (5, 6))
    ]  # as sizes, all are within the image

    def areas(content: Content) -> None:
        for one in content["annotations"]:
            one["area"] = 81

    with pytest.raises(InputError, match="look like left, top, right, bottom"):
        written(tmp_path, areas, near)
    assert not written(tmp_path, boxes=near).skipped, "nothing tells"


def test_boxes_over_the_edge_are_no_corners_where_one_does_not_fit_so(tmp_path: Path) -> None:
    found = written(tmp_path, boxes=[[5, 5, 70, 60], [40, 30, 30, 20], [50, 5, 20, 10]])
    assert found.num_clipped == 3
    assert not found.skipped
    whole = written(tmp_path, boxes=[[0, 0, 64, 48], [1, 1, 64, 48]])
    assert whole.num_clipped == 1, "rounding"


def test_a_side_under_a_pixel_is_judged_and_not_learned(tmp_path: Path) -> None:
    found = written(tmp_path, boxes=[[4, 6, 0.5, 18], [63.5, 6, 20, 18], [4, 6, 1, 1]])
    assert [box.is_tiny for box in found.images[0].boxes] == [
        True,
        True,
        False,
    ]
    assert found.num_clipped == 1
    assert found.facts["under a pixel"] == 2
    assert "2 with a side under a pixel, evaluated but not learned" in found.notes[0]
    assert written(tmp_path, boxes=[[4, 6, 0.5, 18]]).learnable == ()


def test_an_id_that_no_tensor_holds(tmp_path: Path) -> None:
    found = written(tmp_path, lambda content: content["images"][0].update(id=2**63))
    assert f"has an id beyond {2**63 - 1}" in found.skipped[0]


def test_a_file_s_name_may_be_composed_otherwise(tmp_path: Path) -> None:
    (tmp_path / "e\u0301.png").write_bytes(b"")
    assert file_of(tmp_path, "\u00e9.png") == tmp_path / "e\u0301.png"
    for name in ("../a", "/etc/passwd", "a\0b", "x" * 5000, ""):
        assert file_of(tmp_path, name) is None


def test_where_a_file_is_if_its_folders_are_wrong(tmp_path: Path) -> None:
    for name in ("val\\a.png", "images/a.png"):
        found = written(
            tmp_path, lambda content, name=name: content["images"][0].update(file_name=name)
        )
        assert f"there is no file {name!r} in {tmp_path}, but there is 'a.png'" in found.skipped[0]


@pytest.mark.parametrize(
    ("corners", "label", "ids"),
    [
        ((0, 0, 0, 5), 0, (1, 2)),
        ((0, 0, 11, 5), 0, (1, 2)),
        ((-1, 0, 5, 5), 0, (1, 2)),
        ((0, 0, float("nan"), 5), 0, (1, 2)),
        ((0, 0, 5, 5), 1, (1, 2)),
        ((0, 0, 5, 5), 0, (1, 1)),
        ((0, 0, 5, 5), 0, (1, 2**63)),
    ],
)
def test_a_set_of_one_s_own_is_checked(
    tmp_path: Path, corners: Any, label: int, ids: tuple[int, int]
) -> None:
    def made(corners: Any, label: int, ids: tuple[int, int]) -> BoxSet:
        boxes = (Box(corners=corners, label=label, area=1),)
        images = tuple(
            BoxImage(
                name="mine",
                file=tmp_path / str(number),
                image_id=number,
                width=10,
                height=10,
                boxes=boxes,
            )
            for number in ids
        )
        return BoxSet(
            name="own", classes=("a",), category_ids=(1,), images=images, skipped=(), num_clipped=0
        )

    good = made((0, 0, 10, 5), 0, (1, 2))
    assert refuse_bad_boxes(good) is good
    with pytest.raises(InputError, match="own"):
        refuse_bad_boxes(made(corners, label, ids))
