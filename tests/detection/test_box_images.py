"""Image files beside their annotations: boxes are where they were drawn, or the image is named."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dggraph.detection.box_data import BoxDataset
from dggraph.detection.box_images import (
    AS_OTHERS,
    AS_STORED,
    UNDECIDED,
    UPRIGHT,
    compare_images,
    open_drawn_on,
)
from dggraph.detection.box_sets import Box, BoxImage, BoxSet
from dggraph.errors import InputError

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4:
    Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8:
    Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How an upright image is stored with this EXIF orientation: the turn undone."""


def photo(file: Path, orientation: int, size: tuple[int, int] = (20, 10)) -> BoxImage:
    """Upright it is of `size`, with a red dot in the box."""
    upright = Image.new("RGB", size)
    upright.putpixel((3, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(TURNS[orientation]) if orientation in TURNS else upright
    stored.save(file, exif=exif)
    box = Box(corners=(3, 2, 4, 3), label=0, area=1)
    return BoxImage(
        name=file.name,
        file=file,
        image_id=len(file.stem),
        width=size[0],
        height=size[1],
        boxes=(box,),
    )


def made(*images: BoxImage) -> BoxSet:
    return BoxSet(
        name="photos", classes=("dot",), category_ids=(1,), images=images, skipped=(), num_clipped=0
    )


def is_on_the_dot(entry: BoxImage) -> bool:
    image, target = BoxDataset([entry])[0]
    left, top, right, bottom = target["boxes"][0].int().tolist()
    return bool(
        torch.equal(image[:, top:bottom, left:right].flatten(), torch.tensor([1.0, 0.0, 0.0]))
    )


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_on_the_upright_image(tmp_path: Path, orientation: int) -> None:
    entry = photo(tmp_path / "a.png", orientation)
    found = compare_images(made(entry), on_bad="error", depth="ends")
    assert found.images[0].is_upright
    assert found.counts == {UPRIGHT: 1}
    assert "turned upright by EXIF" in found.notes[0]
    assert is_on_the_dot(found.images[0])
    assert is_on_the_dot(entry), "also where the file was not looked at before"


def test_boxes_drawn_on_the_stored_image(tmp_path: Path) -> None:
    entry = photo(tmp_path / "a.png", 6)
    lying = BoxImage(name="a", file=entry.file, image_id=1, width=10, height=20, boxes=())
    found = compare_images(made(lying), on_bad="error", depth="ends")
    assert found.images == (lying,)
    assert not found.counts
    assert open_drawn_on(lying).size == (10, 20)


@pytest.mark.parametrize(
    ("orientation", "size"),
    [(3, (20, 10)), (2, (20, 10)), (4, (20, 10)), (6, (20, 20)), (8, (20, 20))],
)
def test_a_turn_that_keeps_the_size_follows_the_others(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    unclear, clear = photo(tmp_path / "a.png", orientation, size), photo(tmp_path / "bb.png", 6)
    alone = compare_images(made(unclear), on_bad="error", depth="ends")
    assert not alone.images[0].is_upright
    assert alone.counts == {UNDECIDED + AS_STORED: 1}
    found = compare_images(made(unclear, clear), on_bad="error", depth="ends")
    assert found.counts == {UPRIGHT: 1, UNDECIDED + AS_OTHERS: 1}
    assert all(is_on_the_dot(image) for image in found.images)


def test_another_size_is_found_before_training_and_exif_is_named(tmp_path: Path) -> None:
    good, lost, other = (
        photo(tmp_path / "a.png", 1),
        photo(tmp_path / "bb.png", 1),
        photo(tmp_path / "ccc.png", 6),
    )
    Image.open(lost.file).transpose(Image.Transpose.ROTATE_90).save(lost.file)
    Image.new("RGB", (9, 9)).save(other.file)
    with pytest.raises(InputError, match=r"bb\.png") as raised:
        compare_images(made(good, lost, other), on_bad="error", depth="ends")
    for what in (
        "bb.png' is 10 x 20 pixels, but its annotations were drawn on 20 x 10",
        "EXIF",
        "ccc.png",
        "2 of 3 images of photos",
    ):
        assert what in str(raised.value)
    found = compare_images(made(good, lost, other), on_bad="skip", depth="ends")
    assert found.images == (good,)
    assert len(found.skipped) == 2
    with pytest.raises(InputError, match=r"bb\.png.*EXIF"):
        open_drawn_on(lost)


@pytest.mark.parametrize("depth", ["ends", "whole"])
def test_unreadable_images_are_found_before_training(tmp_path: Path, depth: str) -> None:
    good, bad = photo(tmp_path / "a.png", 1), photo(tmp_path / "bb.png", 1)
    bad.file.write_bytes(bad.file.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"bb\.png.*--on-bad-image skip"):
        compare_images(made(good, bad), on_bad="error", depth=depth)  # type: ignore[arg-type]
    found = compare_images(made(good, bad), on_bad="skip", depth=depth)  # type: ignore[arg-type]
    assert found.images == (good,)
    assert "bb.png" in found.skipped[0]
    assert found.facts["left out"] == 1
    assert found.notes == ("photos: 1 image, 1 box; 1 bad entries left out",)


def test_tiny_boxes_are_not_learned(tmp_path: Path) -> None:
    entry = photo(tmp_path / "a.png", 1)
    tiny = Box(corners=(3, 2, 3.5, 9), label=0, area=3)
    with_tiny = BoxImage(
        name="a", file=entry.file, image_id=1, width=20, height=10, boxes=(tiny, *entry.boxes)
    )
    assert BoxDataset([with_tiny])[0][1]["boxes"].tolist() == [[3, 2, 4, 3]]
