"""A routed network with painted images for it, and an atlas full of hostile names."""

from dataclasses import replace
from pathlib import Path

import torch
from markup import HOSTILE
from PIL import Image
from reference import randomise_routers
from small import Net

import dggraph
from dggraph.evaluation.atlas import Collected
from dggraph.graph.atlas import Atlas
from dggraph.models.preprocessing import Preprocess
from dggraph.network.network import DynamicNetwork

LABELS = ("apple", "bee", "cloud", "dune", "elk")
CLASSES = ("apple", "bee", "elk")


def build(seed: int = 3) -> DynamicNetwork:
    torch.manual_seed(0)
    net = dggraph.convert(Net(depth=3), torch.zeros(1, 3, 16, 16), router="node")
    net.preprocess = Preprocess(
        input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, crop_fraction=1.0
    )
    net.labels = LABELS
    randomise_routers(net, seed, 0.6)
    return net


def paint(folder: Path, number: int = 12) -> Path:
    """Noise of many colours, `number` images a class."""
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(number):
            noise = torch.rand(
                16, 16, 3, generator=torch.Generator().manual_seed(100 * label + index)
            )
            tint = (
                torch.rand(3, generator=torch.Generator().manual_seed(7 * label + 31 * index)) * 2
                - 1
            )
            pixels = (
                ((noise * 0.4 + 0.3 + tint * (0.2 + 0.2 * label)).clamp(0, 1) * 255).byte().numpy()
            )
            Image.fromarray(pixels).save(folder / name / f"{index:02d}.png")
    return folder


def hostile_atlas(collected: Collected) -> Atlas:
    atlas = collected.atlas
    names = (HOSTILE * 9)[: len(atlas.instances)]
    return replace(
        atlas,
        network=HOSTILE[0],
        images=HOSTILE[7],
        num_skipped=len(HOSTILE),
        skipped=tuple((name, name) for name in HOSTILE),
        instances=tuple(
            replace(one, name=name, label=name, prediction=name)
            for one, name in zip(atlas.instances, names, strict=True)
        ),
        classes=tuple(replace(atlas.classes[0], name=name) for name in HOSTILE),
        most_common=tuple(
            replace(path, classes=tuple((name, 1) for name in HOSTILE))
            for path in atlas.most_common
        ),
    )
