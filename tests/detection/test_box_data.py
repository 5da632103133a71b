"""Images with boxes, as detectors take them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dggraph.data.sampler import SeededDataset
from dggraph.detection.box_data import BoxDataset, collate
from dggraph.detection.readers import Box, BoxImage
from dggraph.errors import InputError


def picture(
    folder: Path, width: int = 20, height: int = 10, exif: Image.Exif | None = None
) -> Path:
    """A red dot at (3, 2)."""
    image = Image.new("RGB", (width, height))
    image.putpixel((3, 2), (255, 0, 0))
    image.save(folder / "a.png", exif=exif or Image.Exif())
    return folder / "a.png"


def entry(file: Path, width: int = 20, height: int = 10) -> BoxImage:
    dot = Box(corners=(3, 2, 4, 3), label=6, area=1)
    crowd = Box(corners=(0, 0, 9, 9), label=2, area=81, is_crowd=True)
    return BoxImage(
        name=file.name, file=file, image_id=42, width=width, height=height, boxes=(dot, crowd)
    )


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_box_stays_on_its_object(tmp_path: Path, flip: float) -> None:
    """Also where EXIF would turn the image: boxes are drawn on what is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ((image, target),) = [BoxDataset([entry(picture(tmp_path, exif=exif))], flip=flip)[0]]
    left, top, right, bottom = target["boxes"][0].int().tolist()
    assert (left, top) == ((16, 2) if flip else (3, 2))
    assert target["labels"].tolist() == [7]
    assert int(target["image_id"]) == 42
    assert image.shape == (3, 10, 20)
    assert image[:, top:bottom, left:right].flatten().tolist() == [1, 0, 0]
    assert float(image.sum()) == 1
    assert type(image) is torch.Tensor
    assert type(target["boxes"]) is torch.Tensor
    assert image.dtype == torch.float32


def test_another_size_than_annotated(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"a.png' is 20 x 10 pixels, but its annotations were drawn on 10 x 20"
    ):
        BoxDataset([entry(picture(tmp_path), 10, 20)])[0]
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="not an image that can be read"):
        BoxDataset([entry(tmp_path / "a.png")])[0]


def test_augmentation_follows_from_seed_and_place(tmp_path: Path) -> None:
    seeded = SeededDataset(BoxDataset([entry(picture(tmp_path))], flip=0.5), 0)
    lefts = [int(seeded[epoch, 0][1]["boxes"][0, 0]) for epoch in range(20)]
    assert set(lefts) == {3, 16}
    assert lefts == [int(seeded[epoch, 0][1]["boxes"][0, 0]) for epoch in range(20)]


def test_images_of_several_sizes_stay_a_list() -> None:
    images, targets = collate(
        [
            (torch.zeros(3, 2, 4), {"a": torch.ones(1)}),
            (torch.zeros(3, 5, 4), {"a": torch.zeros(1)}),
        ]
    )
    assert [tuple(image.shape) for image in images] == [(3, 2, 4), (3, 5, 4)]
    assert float(targets[0]["a"]) == 1
