"""Make what `dggraph demo` shows: the network of a run, and two test images a class, right ones,
with different paths where there are some.

dggraph train fashion_mnist --experiment demo
python docs/demo_assets.py runs/demo/archive
"""

import shutil
import sys
from pathlib import Path

import torch
from PIL import Image

import dggraph
from dggraph.data.sources import open_data
from dggraph.network.cost import path_keys
from dggraph.training.config import read_config

ASSETS = Path(dggraph.__file__).parent / "assets"


def main(archive: str) -> None:
    net = dggraph.load(archive).eval()
    assert net.preprocess is not None
    assert net.labels is not None
    config = read_config(Path("fashion_mnist"), {})
    validation = open_data(config.source, net.preprocess, config.augmentation).validation
    samples = [validation[index] for index in range(1000)]
    labels = torch.tensor([label for _, label in samples])
    with torch.no_grad():
        output, gates = net(torch.stack([image for image, _ in samples]), return_gates=True)
    paths = path_keys(gates)
    is_right = (output.argmax(1) == labels).tolist()
    folder = ASSETS / "samples"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, label in enumerate(net.labels):
        right = [
            index for index, one in enumerate(labels.tolist()) if one == number and is_right[index]
        ]
        other = next((index for index in right if paths[index] != paths[right[0]]), right[1])
        name = "".join(char if char.isalnum() else "-" for char in label.lower())
        for place, index in enumerate((right[0], other)):
            pixels = validation.images_NCHW[index, 0]  # type: ignore[attr-defined]
            Image.fromarray(pixels.numpy()).save(folder / f"{name}-{place}.png", optimize=True)
    shutil.rmtree(ASSETS / "fashion_mnist", ignore_errors=True)
    shutil.copytree(archive, ASSETS / "fashion_mnist")


if __name__ == "__main__":
    main(*sys.argv[1:])
