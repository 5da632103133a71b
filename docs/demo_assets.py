"""Put the networks of runs into the package, and for `dggraph demo` two test images a class, right
ones, with different paths where there are some. `dggraph/assets/README.md` says how both are
trained.

python docs/demo_assets.py fashion_mnist runs/demo
python docs/demo_assets.py object_photos runs/object_photos
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import dggraph
from dggraph.data.sources import open_data
from dggraph.network.cost import path_keys
from dggraph.network.network import DynamicNetwork
from dggraph.training.config import read_config
from dggraph.training.results import read_results

ASSETS = Path(dggraph.__file__).parent / "assets"
REMARKS = {
    "fashion_mnist": (),
    "object_photos": (
        "The photographs behind the objects differ between the two parts; the cut-outs of the"
        " objects are the same, so objects that it has not seen are recognised less well.",
        "The cut-outs are Tux Paint's stamps (GPL-2). No image is in this folder.",
    ),
}


def main(name: str, run: str) -> None:
    net = dggraph.load(Path(run, "archive")).eval()
    assert isinstance(net, DynamicNetwork)
    results = read_results(run)
    if name == "fashion_mnist":
        draw_samples(net)
    shutil.rmtree(ASSETS / name, ignore_errors=True)
    results = replace(
        results,
        dataset=name,
        versions=results.versions | {"dggraph": dggraph.__version__},
        remarks=(*results.remarks, *REMARKS[name]),
    )
    net.save_pretrained(ASSETS / name, results=results, license="apache-2.0")


def draw_samples(net: DynamicNetwork) -> None:
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


if __name__ == "__main__":
    main(*sys.argv[1:])
