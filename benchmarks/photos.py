"""Crops of real photographs to distil on, and others to test on; files are dealt to one side or the
other, near-duplicates together.

    sh benchmarks/fetch_photos.sh PHOTOS
    python benchmarks/photos.py PHOTOS OUTPUT

writes OUTPUT/train (the pool), OUTPUT/val (photographs) and OUTPUT/stamps (cut-outs on white, in
folders named after ImageNet's classes), and docs/benchmarks/distillation/files.json, which says
where each image came from. The pool also has cut-outs that no class of ImageNet names, on white and
on crops of its own photographs. Sources: Tux Paint's stamps (GPL-2), darknet, OpenCV's and
labelme's examples, wallpapers of MATE, Lomiri and UKUI, scikit-image; each under its package's own
licence, none kept here.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import skimage
from PIL import Image
from torchvision.models import MobileNet_V2_Weights

from dggraph.models.preprocessing import open_image

LISTS = Path(__file__).parents[1] / "docs" / "benchmarks" / "distillation"
SIDE = 256
OPENCV = [
    "aero1",
    "aero3",
    "aloeL",
    "aloeR",
    "apple",
    "baboon",
    "basketball1",
    "basketball2",
    "blox",
    "board",
    "box_in_scene",
    "building",
    "butterfly",
    "cards",
    "fruits",
    "graf1",
    "graf3",
    "home",
    "HappyFish",
    "leuvenA",
    "leuvenB",
    "messi5",
    "orange",
    "rubberwhale1",
    "rubberwhale2",
    "smarties",
    "squirrel_cls",
    "stuff",
]
MATE = [
    "Aqua",
    "Dune",
    "Elephants",
    "FreshFlower",
    "Garden",
    "GreenMeadow",
    "LadyBird",
    "RainDrops",
    "Storm",
    "TwoWings",
    "Wood",
    "YellowFlower",
]
SKIMAGE = [
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "camera",
    "coins",
    "motorcycle_left",
    "hubble_deep_field",
]
EVERY_NTH = 4
"""Groups of photographs: every fourth is for the test."""
CROPS, TEST_CROPS = 12, 3
NOT_PHOTOS = ("cartoon", "symbols/", "roadsigns", "flags", "planets", "confetti", "fireworks")


def photographs(unpacked: Path) -> Iterator[tuple[str, Path]]:
    """(group, file): files of one group show nearly the same."""
    skimage_data = Path(skimage.__file__).parent / "data"
    wanted = {
        "opencv-doc": ("*/examples/data/*", OPENCV),
        "mate-backgrounds": ("*/*.jpg", MATE),
        "darknet": ("*/data/*.jpg", ["dog", "eagle", "giraffe", "horses", "kite", "person"]),
        "labelme-examples": (
            "*/*.jpg",
            [
                "2011_000003",
                "2011_000006",
                "2011_000025",
                "00000100",
                "00000104",
                "0001",
                "0002",
                "apc2016_obj3",
            ],
        ),
        "lomiri-wallpapers-16.04": ("*/*.jpg", None),
        "lomiri-wallpapers-20.04": ("*/*.jpg", None),
        "ukui-wallpapers": ("*/*.jpg", None),
    }
    for package, (pattern, stems) in wanted.items():
        seen: set[str] = set()
        for file in sorted((unpacked / package).rglob("*")):
            if (
                file.is_file()
                and file.match(pattern)
                and file.suffix in (".jpg", ".png")
                and file.stem not in seen
            ):
                if stems is None or file.stem in stems:
                    seen.add(file.stem)
                    yield f"{package}/{re.sub('[0-9]+$|[ABLR]$', '', file.stem)}", file
    for stem in SKIMAGE:
        for file in sorted(skimage_data.glob(f"{stem}.*")):
            yield f"skimage/{stem}", file


def crop(image: Image.Image, draw: random.Random, *, is_centre: bool) -> Image.Image:
    short = min(image.size)
    side = short if is_centre else int(short * draw.uniform(0.45, 1.0))
    left, top = (
        (total - side) // 2 if is_centre else draw.randint(0, total - side) for total in image.size
    )
    return image.crop((left, top, left + side, top + side)).resize(
        (SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3
    )


def paste(stamp: Image.Image, background: Image.Image, draw: random.Random | None) -> Image.Image:
    """The cut-out on `background`: as large as fits, in the middle; with `draw`, at 50 to 95 % of
    it, anywhere.
    """
    scale = SIDE / 1.15 if draw is None else SIDE * draw.uniform(0.5, 0.95)
    factor = scale / max(stamp.size)
    small = stamp.resize(
        (max(1, round(stamp.width * factor)), max(1, round(stamp.height * factor))),
        Image.Resampling.LANCZOS,
    )
    room = SIDE - small.width, SIDE - small.height
    place = (
        (room[0] // 2, room[1] // 2)
        if draw is None
        else (draw.randint(0, room[0]), draw.randint(0, room[1]))
    )
    result = background.copy()
    result.paste(small, place, small)
    return result


def write(image: Image.Image, folder: Path, name: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    image.convert("RGB").save(folder / f"{name}.png")
    return f"{folder.name}/{name}.png"


def build(unpacked: Path, output: Path) -> dict[str, dict[str, str]]:
    """Where each written image came from, by part."""
    draw, sources = random.Random(0), {"train": {}, "val": {}, "stamps": {}}
    white = Image.new("RGB", (SIDE, SIDE), "white")
    groups = sorted({group for group, _ in photographs(unpacked)})
    random.Random(1).shuffle(groups)
    held_out, backgrounds = set(groups[::EVERY_NTH]), []
    for number, (group, file) in enumerate(photographs(unpacked)):
        image, part = open_image(file), "val" if group in held_out else "train"
        for index in range(TEST_CROPS if part == "val" else CROPS):
            cropped = crop(image, draw, is_centre=index == 0)
            if part == "train":
                backgrounds.append(cropped)
            sources[part][write(cropped, output / part, f"photo_{number:03}_{index:02}")] = (
                f"{group}: {file.name}"
            )
    stamps = unpacked / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    labels = json.loads((LISTS / "stamps.json").read_text())
    classes = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    for number, file in enumerate(sorted(stamps.rglob("*.png"))):
        name = file.relative_to(stamps).as_posix()
        if name in labels:
            stamp = Image.open(file).convert("RGBA")
            folder = output / "stamps" / classes[labels[name][0]]
            written = write(paste(stamp, white, None), folder, f"stamp_{number:03}")
            sources["stamps"][f"{folder.name}/{written.rsplit('/')[-1]}"] = name
        elif not any(part in name for part in NOT_PHOTOS) and file.with_suffix(".txt").exists():
            stamp = Image.open(file).convert("RGBA")
            for index, background in enumerate(
                [white, draw.choice(backgrounds), draw.choice(backgrounds)]
            ):
                made = paste(stamp, background, draw if index else None)
                sources["train"][write(made, output / "train", f"stamp_{number:03}_{index:02}")] = (
                    name
                )
    return sources


def main() -> None:
    photos, output = map(Path, sys.argv[1:])
    sources = build(photos / "unpacked", output)
    (LISTS / "files.json").write_text(json.dumps(sources, indent=0) + "\n")
    print(
        {
            part: (len(names), "images from", len(set(names.values())), "files")
            for part, names in sources.items()
        }
    )


if __name__ == "__main__":
    main()
