"""Sets of boxes: what they say by hand, and every kind of damage named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dggraph.detection.readers import read_coco, read_voc
from dggraph.errors import InputError

Content = dict[str, Any]


def content() -> Content:
    """Two images; ids begin at 0, as labelme's do."""
    return {
        "images": [
            {"id": 0, "file_name": "a.png", "width": 100, "height": 50},
            {"id": 7, "file_name": "b.png", "width": 40, "height": 40},
        ],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 30,
                "bbox": [10, 5, 20, 30],
                "area": 222.5,
                "iscrowd": 0,
            },
            {"id": 1, "image_id": 0, "category_id": 4, "bbox": [90, -5, 20, 10]},
            {"id": 2, "image_id": 7, "category_id": 30, "bbox": [0, 0, 40, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 30, "name": "rose"}, {"id": 4, "name": "<b>tulip</b>"}],
    }


def written(
    folder: Path, change: Callable[[Content], object] = lambda _: None
) -> tuple[Path, Path]:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"")
    found = content()
    change(found)
    (folder / "boxes.json").write_text(json.dumps(found))
    return folder / "boxes.json", folder


def test_a_coco_file_by_hand(tmp_path: Path) -> None:
    found = read_coco(*written(tmp_path))
    assert found.classes == ("<b>tulip</b>", "rose")
    assert found.category_ids == (4, 30)
    assert not found.skipped
    first, second = found.images
    assert (first.name, first.image_id, first.width, first.height, first.file) == (
        "a.png",
        0,
        100,
        50,
        tmp_path / "a.png",
    )
    assert [(box.corners, box.label, box.area, box.is_crowd) for box in first.boxes] == [
        ((10, 5, 30, 35), 1, 222.5, False),
        ((90, 0, 100, 5), 0, 50, False),
    ], "the second reached over the edge"
    assert found.num_clipped == 1
    assert second.boxes[0].is_crowd
    assert found.learnable == (first,), "nothing can be learned from a crowd alone"


def put(place: int, key: str, value: Any) -> Callable[[Content], object]:
    return lambda found: found["annotations"][place].__setitem__(key, value)


DAMAGE: dict[str, tuple[Callable[[Content], object], str]] = {
    "negative": (
        put(0, "bbox", [10, 5, -20, 30]),
        "annotation 0 of 'a.png' has an empty box, -20 x 30",
    ),
    "empty": (put(0, "bbox", [10, 5, 0, 30]), "annotation 0 of 'a.png' has an empty box, 0 x 30"),
    "nan": (
        put(0, "bbox", [10, float("nan"), 5, 5]),
        "annotation 0 of 'a.png' has the box [10, nan, 5, 5], which is not four finite numbers",
    ),
    "infinite": (put(0, "bbox", [10, 5, 5, float("inf")]), "not four finite numbers"),
    "words": (put(0, "bbox", ["10", 5, 5, 5]), "not four finite numbers"),
    "three numbers": (put(0, "bbox", [10, 5, 5]), "not four finite numbers"),
    "no box": (
        lambda found: found["annotations"][0].pop("bbox"),
        "annotation 0 of 'a.png' has the box None",
    ),
    "outside": (
        put(0, "bbox", [100, 5, 5, 5]),
        "annotation 0 of 'a.png' has a box outside its image of 100 x 50",
    ),
    "above": (put(0, "bbox", [10, -30, 5, 5]), "has a box outside its image"),
    "category": (
        put(0, "category_id", 5),
        "annotation 0 of 'a.png' has category 5, which is not listed",
    ),
    "category list": (put(0, "category_id", [30]), "has category [30], which is not listed"),
    "image": (put(0, "image_id", 3), "annotation 0 belongs to image 3, which is not listed"),
    "image list": (put(0, "image_id", {"a": 1}), "which is not listed"),
    "duplicate id": (put(1, "id", 0), "annotation 0 of 'a.png' has an id that is already used"),
    "no object": (
        lambda found: found["annotations"].__setitem__(0, 3),
        "annotation at index 0 is not a JSON object",
    ),
    "missing file": (
        lambda found: found["images"][0].update(file_name="c.png"),
        "image 0: there is no file 'c.png'",
    ),
    "a way out": (
        lambda found: found["images"][0].update(file_name="../a.png"),
        "image 0: there is no file '../a.png'",
    ),
    "duplicate image": (
        lambda found: found["images"][1].update(id=0),
        "image 0 ('b.png') has an id that is already used",
    ),
    "no size": (
        lambda found: found["images"][0].update(width=0),
        "image 0 ('a.png') has the size 0 x 50",
    ),
    "no name": (
        lambda found: found["images"][0].pop("file_name"),
        "image 0 needs an integer id and a file_name",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_or_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    change, message = DAMAGE[kind]
    files = written(tmp_path, change)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        read_coco(*files)
    assert "boxes.json has " in str(raised.value)
    found = read_coco(*files, on_bad="skip")
    assert message in found.skipped[0]
    num_boxes = sum(len(image.boxes) for image in found.images)
    assert len(found.images) == 2 - (found.skipped[0].startswith("image "))
    assert num_boxes < 3
    assert found.images, "the good ones stay"


def test_many_bad_entries_are_counted(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        lambda found: found["annotations"].extend(
            dict(found["annotations"][0], id=9 + n, bbox=[]) for n in range(9)
        ),
    )
    with pytest.raises(
        InputError, match=r"has 9 bad entries: annotation 9 .*; and 4 more\. Fix them"
    ):
        read_coco(*files)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has no list 'images'"),
        ('{"images": [], "annotations": {}, "categories": []}', "has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
            "a category needs an integer id and a name",
        ),
        (
            (
                '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1,'
                ' "name": "b"}]}'
            ),
            "2 categories have the id 1",
        ),
        (
            (
                '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2,'
                ' "name": "a"}]}'
            ),
            "2 categories have the name 'a'",
        ),
    ],
)
def test_what_is_no_coco_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes.json").write_text(text)
    for on_bad in ("error", "skip"):
        with pytest.raises(InputError, match=message):
            read_coco(tmp_path / "boxes.json", tmp_path, on_bad=on_bad)  # type: ignore[arg-type]


def voc(
    folder: Path,
    objects: str,
    name: str = "a.png",
    size: str = "<width>100</width><height>50</height>",
) -> Path:
    (folder / "a.png").write_bytes(b"")
    (folder / "a.xml").write_text(
        f"<annotation><filename>{name}</filename><size>{size}</size>{objects}</annotation>"
    )
    return folder


def thing(name: str, *sides: object, others: str = "") -> str:
    corners = "".join(
        f"<{key}>{side}</{key}>"
        for key, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True)
    )
    return f"<object><name>{name}</name>{others}<bndbox>{corners}</bndbox></object>"


def test_a_voc_folder_by_hand(tmp_path: Path) -> None:
    hard = thing("cat", 0, 0, 5, 5, others="<difficult>1</difficult>")
    folder = voc(tmp_path, thing("dog", 10, 5, 30, 35) + thing("cat", 90, 5, 110, 10) + hard)
    found = read_voc(folder, folder)
    assert found.classes == ("cat", "dog")
    assert found.num_clipped == 1
    assert [(box.corners, box.label, box.is_crowd) for box in found.images[0].boxes] == [
        ((10, 5, 30, 35), 1, False), ((90, 5, 100, 10), 0, False), ((0, 0, 5, 5), 0, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("objects", "others", "message"),
    [
        (thing("dog", 30, 5, 10, 35), {}, "a.xml: object 0 has an empty box, -20 x 30"),
        (thing("dog", "x", 5, 10, 35), {}, "a.xml: object 0 has the box [None, 5.0, 10.0, 35.0]"),
        (thing("dog", "nan", 5, 10, 35), {}, "not four finite numbers"),
        (
            thing("fox", 1, 5, 10, 35),
            {},
            "a.xml: object 0 is 'fox', which is not one of the classes",
        ),
        (thing("dog", 1, 5, 10, 35), {"name": "c.png"}, "a.xml: there is no image 'c.png'"),
        (
            thing("dog", 1, 5, 10, 35),
            {"name": "/etc/passwd"},
            "a.xml: there is no image '/etc/passwd'",
        ),
        (
            thing("dog", 1, 5, 10, 35),
            {"size": ""},
            "a.xml: the size of 'a.png' is not two positive whole numbers",
        ),
        ("<object>", {}, "a.xml is not XML"),
    ],
)
def test_damage_in_voc(tmp_path: Path, objects: str, others: dict[str, str], message: str) -> None:
    folder = voc(tmp_path, objects, **others)
    with pytest.raises(InputError, match=re.escape(message)):
        read_voc(folder, folder, classes=["dog"])
    assert message in read_voc(folder, folder, classes=["dog"], on_bad="skip").skipped[0]
    with pytest.raises(InputError, match="no XML file"):
        read_voc(folder / "none", folder)
