"""A COCO data set with exact boxes: cut-outs on real photographs.

    sh benchmarks/fetch_photos.sh PHOTOS; python benchmarks/photos.py PHOTOS CROPS
    python benchmarks/composites.py PHOTOS CROPS OUTPUT [--train 1000] [--val 250]

writes OUTPUT/train2017, OUTPUT/val2017 and OUTPUT/annotations/instances_{train,val}2017.json.
Backgrounds are the crops of photos.py, so no file is behind images of both parts; the cut-outs (Tux
Paint's stamps, GPL-2) are shared by both. A box is that of the pixels one can see. Each image
follows from the seed and its number.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dggraph.models.preprocessing import open_image

CATEGORIES = {
    "mammal": "animals/mammals", "bird": "animals/birds", "insect": "animals/insects", "fish":
    "animals/fish", "fruit": "food/fruit",
    "vegetable": "food/vegetables", "flower": "plants/flowers", "tree": "plants/trees", "house":
    "town/houses", "tool": "household/tools",
    "instrument": "hobbies/music", "vehicle": "vehicles",
}  # fmt: skip
"""By folder of the stamps."""
SIZES = [(256, 192), (192, 256), (256, 256)]
SHARE = 0.25, 0.6
"""Lengths of an object's longer side, as fractions of the image's shorter one."""
MIN_VISIBLE, MIN_PIXELS, TRIES = 0.5, 100, 20


def read_stamps(folder: Path) -> dict[str, list[Image.Image]]:
    """Per category the cut-outs, trimmed to what is not transparent."""
    found: dict[str, list[Image.Image]] = {}
    for name, place in CATEGORIES.items():
        files = [
            file for file in sorted((folder / place).rglob("*.png")) if "_mirror" not in file.stem
        ]
        stamps = [Image.open(file).convert("RGBA") for file in files]
        found[name] = [
            stamp.crop(stamp.getchannel("A").getbbox())
            for stamp in stamps
            if stamp.getchannel("A").getbbox()
        ]
    return found


def compose(
    background: Image.Image, stamps: dict[str, list[Image.Image]], draw: random.Random
) -> tuple[Image.Image, list[tuple[str, list[int], int]]]:
    """The image, and category, box (left, top, width, height) and visible pixels of each object."""
    size = draw.choice(SIZES)
    image = ImageOps.fit(background, size, Image.Resampling.LANCZOS)
    owner = np.zeros((size[1], size[0]), dtype=np.int64)  # which object one sees, 0 the background
    placed: list[str] = []
    whole: list[int] = []
    for _ in range(draw.randint(1, 4)):
        category = draw.choice(sorted(stamps))
        stamp = draw.choice(stamps[category])
        if draw.random() < 0.5:
            stamp = ImageOps.mirror(stamp)
        factor = min(size) * draw.uniform(*SHARE) / max(stamp.size)
        stamp = stamp.resize(
            (max(1, round(stamp.width * factor)), max(1, round(stamp.height * factor))),
            Image.Resampling.LANCZOS,
        )
        mask = np.asarray(stamp.getchannel("A")) > 127
        for _ in range(TRIES):
            left, top = (
                draw.randint(0, room - side) for room, side in zip(size, stamp.size, strict=True)
            )
            changed = owner.copy()
            changed[top : top + stamp.height, left : left + stamp.width][mask] = len(placed) + 1
            visible = [int((changed == number + 1).sum()) for number in range(len(placed))]
            if mask.sum() >= MIN_PIXELS and all(
                now >= MIN_VISIBLE * before for now, before in zip(visible, whole, strict=True)
            ):
                image.paste(stamp, (left, top), stamp)
                owner = changed
                placed.append(category)
                whole.append(int(mask.sum()))
                break
    objects = []
    for number, category in enumerate(placed, 1):
        rows, columns = np.nonzero(owner == number)
        left, top = int(columns.min()), int(rows.min())
        objects.append(
            (
                category,
                [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
                len(rows),
            )
        )
    return image, objects


def build(
    part: str,
    backgrounds: list[Path],
    stamps: dict[str, list[Image.Image]],
    num_images: int,
    output: Path,
    seed: int,
) -> None:
    names = list(CATEGORIES)
    content: dict[str, list[Any]] = {
        "images": [], "annotations": [], "categories": [{"id": number, "name": name} for number,
        name in enumerate(names, 1)],
    }  # fmt: skip
    folder = output / f"{part}2017"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, num_images + 1):
        draw = random.Random(f"{seed} {part} {number}")
        image, objects = compose(open_image(draw.choice(backgrounds)), stamps, draw)
        image.save(folder / f"{number:012}.png")
        entry = {
            "id": number,
            "file_name": f"{number:012}.png",
            "width": image.width,
            "height": image.height,
        }
        content["images"].append(entry)
        for category, box, area in objects:
            known = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": names.index(category) + 1,
            }
            content["annotations"].append(known | {"bbox": box, "area": area, "iscrowd": 0})
    (output / "annotations").mkdir(exist_ok=True)
    (output / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    print(
        part,
        len(content["images"]),
        "images",
        len(content["annotations"]),
        "objects",
        len(backgrounds),
        "backgrounds",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("crops", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--val", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    stamps = read_stamps(
        arguments.photos / "unpacked/tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    )
    for part, num_images in (("train", arguments.train), ("val", arguments.val)):
        backgrounds = sorted((arguments.crops / part).glob("photo_*.png"))
        build(part, backgrounds, stamps, num_images, arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
