"""An image folder of twelve classes: one cut-out on a photograph, 64 x 64 pixels.

    sh benchmarks/fetch_photos.sh PHOTOS
    python benchmarks/object_photos.py PHOTOS OUTPUT [--train 2000] [--val 100]

writes OUTPUT/train/CLASS and OUTPUT/val/CLASS, the images of each class by number. Photographs are
dealt to one part or the other as in photos.py, near-duplicates together; the cut-outs (Tux Paint's
stamps, GPL-2), which composites.py sorts into classes, are shared by both. Size, place and crop are
random, so some objects are small, and others fill the image. Each image follows
from its part and its number.
"""

import argparse
import random
from pathlib import Path

from composites import read_stamps
from photos import EVERY_NTH, photographs
from PIL import Image, ImageOps

from dggraph.models.preprocessing import open_image

SIDE = 64
LARGEST = 256
"""Shorter side of the photographs that are cropped."""
SHARE = 0.35, 0.95
"""Lengths of an object's longer side, as fractions of the image's."""


def read_backgrounds(unpacked: Path) -> dict[str, list[Image.Image]]:
    """The photographs of each part."""
    files = list(photographs(unpacked))
    groups = sorted({group for group, _ in files})
    random.Random(1).shuffle(groups)
    held_out = set(groups[::EVERY_NTH])
    found: dict[str, list[Image.Image]] = {"train": [], "val": []}
    for group, file in files:
        photo = open_image(file)
        factor = LARGEST / min(photo.size)
        size = (round(photo.width * factor), round(photo.height * factor))
        found["val" if group in held_out else "train"].append(
            photo.resize(size, Image.Resampling.BOX, reducing_gap=2)
        )
    return found


def compose(background: Image.Image, stamp: Image.Image, draw: random.Random) -> Image.Image:
    side = round(min(background.size) * draw.uniform(0.3, 1.0))
    left, top = (draw.randint(0, length - side) for length in background.size)
    image = background.crop((left, top, left + side, top + side)).resize(
        (SIDE, SIDE), Image.Resampling.LANCZOS
    )
    factor = SIDE * draw.uniform(*SHARE) / max(stamp.size)
    small = stamp.resize(
        (max(1, round(stamp.width * factor)), max(1, round(stamp.height * factor))),
        Image.Resampling.BOX,
        reducing_gap=2,
    )
    small = ImageOps.mirror(small) if draw.random() < 0.5 else small
    place = (draw.randint(0, SIDE - small.width), draw.randint(0, SIDE - small.height))
    image.paste(small, place, small)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="Images of each class.")
    parser.add_argument("--val", type=int, default=100, help="Images of each class.")
    arguments = parser.parse_args()
    unpacked = arguments.photos / "unpacked"
    stamps = read_stamps(unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps")
    for cut_outs in stamps.values():
        for stamp in cut_outs:
            stamp.thumbnail((2 * SIDE, 2 * SIDE))
    backgrounds = read_backgrounds(unpacked)
    for part, count in (("train", arguments.train), ("val", arguments.val)):
        for name, cut_outs in stamps.items():
            folder = arguments.output / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw = random.Random(f"{part} {name} {number}")
                image = compose(draw.choice(backgrounds[part]), draw.choice(cut_outs), draw)
                image.save(folder / f"{number:04}.png")
        print(part, len(stamps) * count, "images on", len(backgrounds[part]), "photographs")
    print({name: len(cut_outs) for name, cut_outs in stamps.items()})


if __name__ == "__main__":
    main()
