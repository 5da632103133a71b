"""Squares of two kinds on noise, as a COCO folder and as VOC, and a detector small enough to learn
them in seconds.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from dggraph.detection.box_data import READERS
from dggraph.detection.readers import BoxSet
from dggraph.models.feature_pyramids import pyramid_on
from dggraph.training.config import TrainConfig

CATEGORIES = {3: "dark", 9: "light"}
SIZES = [(64, 48), (48, 64), (64, 64)]


def write_coco(folder: Path, num_train: int = 12, num_val: int = 6) -> Path:
    """Image k of a part has k % 3 + 1 squares; categories have gaps in their numbers, and
    annotations count from 0.
    """
    draw = np.random.default_rng(0)
    for part, number in (("train2017", num_train), ("val2017", num_val)):
        (folder / part).mkdir(parents=True)
        content: dict[str, list[object]] = {"images": [], "annotations": [], "categories": []}
        content["categories"] = [
            {"id": number, "name": name} for number, name in CATEGORIES.items()
        ]
        for k in range(number):
            width, height = SIZES[k % 3]
            pixels = draw.integers(96, 160, (height, width, 3), dtype=np.uint8)
            for _ in range(k % 3 + 1):
                side, kind = int(draw.integers(12, 20)), int(draw.choice(list(CATEGORIES)))
                left, top = (int(draw.integers(0, edge - side)) for edge in (width, height))
                pixels[top : top + side, left : left + side] = 10 if kind == 3 else 245
                box = {
                    "id": len(content["annotations"]),
                    "image_id": 7 * k,
                    "category_id": kind,
                    "iscrowd": 0,
                    "area": side * side,
                }
                content["annotations"].append(box | {"bbox": [left, top, side, side]})
            Image.fromarray(pixels).save(folder / part / f"{k}.png")
            content["images"].append(
                {"id": 7 * k, "file_name": f"{k}.png", "width": width, "height": height}
            )
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


def write_voc(folder: Path, sets: tuple[BoxSet, BoxSet]) -> Path:
    """The same images and boxes as VOC has them."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part, found in zip(("train", "val"), sets, strict=True):
        stems = []
        for image in found.images:
            stem = f"{part}-{image.image_id}"
            (folder / "JPEGImages" / f"{stem}.png").write_bytes(image.file.read_bytes())
            objects = "".join(
                f"<object><name>{found.classes[box.label]}</name><bndbox>"
                + "".join(
                    f"<{side}>{value}</{side}>"
                    for side, value in zip(
                        ("xmin", "ymin", "xmax", "ymax"), box.corners, strict=True
                    )
                )
                + "</bndbox></object>"
                for box in image.boxes
            )
            size = f"<size><width>{image.width}</width><height>{image.height}</height></size>"
            text = f"<annotation><filename>{stem}.png</filename>{size}{objects}</annotation>"
            (folder / "Annotations" / f"{stem}.xml").write_text(text)
            stems.append(stem)
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(stems))
    return folder


def detector(num_classes: int) -> nn.Module:
    few = {
        f"rpn_{when}_nms_top_n_{mode}": 50 for when in ("pre", "post") for mode in ("train", "test")
    }
    # Expansion, channels, blocks and stride of each group.
    groups = [[1, 32, 1, 1], *([6, channels, 2, 2] for channels in (32, 64, 96, 128))]
    classifier = mobilenet_v2(width_mult=0.25, inverted_residual_setting=groups)
    trunk = pyramid_on(classifier, out_channels=16, is_frozen=False)
    return FasterRCNN(
        trunk,
        box_head=TwoMLPHead(16 * 7 * 7, 64),
        box_predictor=FastRCNNPredictor(64, num_classes + 1),
        **few,
        rpn_batch_size_per_image=16,
        box_batch_size_per_image=8,
        min_size=64,
        max_size=96,
    )


def sets(config: TrainConfig) -> tuple[BoxSet, BoxSet]:
    """As a user's own function gives them."""
    assert config.data_dir is not None
    return tuple(READERS["coco"](config.data_dir, part, "error") for part in ("train", "val"))  # type: ignore[return-value]
