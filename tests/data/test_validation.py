"""The images to judge on: found without a training part, labelled as the network means it, thinned
evenly.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image
from toy_data import Toy

import dggraph
from dggraph.data.validation import ValidationData, open_validation
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, open_image, preprocess_image
from dggraph.network.network import DynamicNetwork
from dggraph.training.config import TrainConfig, configured

COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0), "cat": (0, 0, 200)}


@pytest.fixture
def net() -> DynamicNetwork:
    net = dggraph.convert("dggraph:resnet14_4", torch.zeros(1, 3, 16, 16))
    net.preprocess = Preprocess(input_size=(3, 16, 16))
    return net


def write(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 18), COLOURS[name.split("/")[-2] if "/" in name else "ant"]).save(
            folder / name
        )
    return folder


def config(folder: Path, **keys: object) -> TrainConfig:
    return TrainConfig(model="m", data_dir=folder, **keys)


def validated(net: DynamicNetwork, config: TrainConfig, limit: int | None = None) -> ValidationData:
    preprocess = None if net.preprocess is None else configured(net.preprocess, config)
    return open_validation(net, config.source, preprocess=preprocess, limit=limit)


@pytest.mark.parametrize("within", ["val", "validation", "valid", "."])
def test_a_folder_needs_no_training_part(net: DynamicNetwork, tmp_path: Path, within: str) -> None:
    write(tmp_path / within, ["bee/1.png", "ant/2.png", "ant/1.png"])
    data = validated(net, config(tmp_path))
    assert data.classes == ("ant", "bee")
    assert [label for _, label in data.images] == [0, 0, 1]
    expected = preprocess_image(open_image(tmp_path / within / "bee/1.png"), net.preprocess)[0]
    assert torch.equal(data.images[2][0], expected)


def test_with_a_training_part_the_other_is_read(net: DynamicNetwork, tmp_path: Path) -> None:
    write(
        tmp_path,
        ["train/ant/1.png", "train/bee/1.png", "val/ant/1.png", "val/bee/1.png", "val/bee/2.png"],
    )
    assert [label for _, label in validated(net, config(tmp_path)).images] == [0, 1, 1]


def test_images_without_classes_have_no_labels(net: DynamicNetwork, tmp_path: Path) -> None:
    data = validated(net, config(write(tmp_path, ["1.png", "2.png"])))
    assert data.classes == ()
    assert [label for _, label in data.images] == [-1, -1]


def test_classes_go_by_the_networks_names(net: DynamicNetwork, tmp_path: Path) -> None:
    """A folder has them in alphabetical order, and perhaps not all; a label is the place of an
    output.
    """
    write(tmp_path, ["ant/1.png", "cat/1.png"])
    net.labels = ("cat", "bee", "ant")
    data = validated(net, config(tmp_path))
    assert data.classes == net.labels
    assert [label for _, label in data.images] == [2, 0]
    net.labels = ("n01", "n02")
    assert [label for _, label in validated(net, config(tmp_path)).images] == [0, 1], (
        "by place: none is named"
    )
    for labels, culprit in (
        (("cat", "bee"), "ant"),
        (("n01", "n02", "n03"), "ant"),
        (("ant", "cat", "cat"), "cat"),
    ):
        net.labels = labels
        with pytest.raises(InputError, match=f"exactly one is '{culprit}'"):
            validated(net, config(tmp_path))


def test_keys_go_before_what_the_network_says(net: DynamicNetwork, tmp_path: Path) -> None:
    """Mean 0 and deviation 1 leave red as 200 / 255."""
    write(tmp_path, ["ant/1.png"])
    (image, _), *_ = validated(
        net, config(tmp_path, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1)
    ).images
    assert image.amax() == torch.tensor(200 / 255)
    assert image[1:].amax() == 0


def test_a_limit_is_evenly_spread(net: DynamicNetwork) -> None:
    keys = TrainConfig(model="m", dataset="toy_data:make")
    images = validated(net, keys, limit=8).images
    assert images.indices == [4, 9, 14, 19, 24, 29, 34, 39]
    everything = Toy(40, False, 1)
    assert torch.equal(images[1][0], everything[9][0])
    assert images[1][1] == everything[9][1]
    assert len(validated(net, keys, limit=100).images) == 40


def test_a_network_must_say_how_images_become_its_input(
    net: DynamicNetwork, tmp_path: Path
) -> None:
    net.preprocess = None
    with pytest.raises(InputError, match="does not say how images become its input"):
        validated(net, config(tmp_path))
