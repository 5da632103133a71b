"""`explain` and `preprocess` read every kind of image alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dggraph
from dggraph.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def net() -> dggraph.DynamicNetwork:
    torch.manual_seed(0)
    return dggraph.convert("dggraph:resnet20_8")


def test_a_file_an_array_a_picture_and_tensors_are_one_image(
    net: dggraph.DynamicNetwork, tmp_path: Path
) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    whole = torch.from_numpy(PIXELS).movedim(2, 0)
    images = [Image.fromarray(PIXELS), PIXELS, tmp_path / "photo.png", whole, whole / 255]
    wanted, *others = [dggraph.explain(net, image) for image in images]
    assert net.preprocess is not None
    for image, found in zip(images[1:], others, strict=True):
        assert torch.equal(net.preprocess(image), net.preprocess(images[0]))
        assert found.predictions == wanted.predictions
        assert found.path == wanted.path


def test_the_home_folder_is_found(
    net: dggraph.DynamicNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    assert dggraph.explain(net, "~/photo.png").path == dggraph.explain(net, PIXELS).path


def test_a_grey_tensor_is_a_grey_image(net: dggraph.DynamicNetwork) -> None:
    assert net.preprocess is not None
    grey = torch.from_numpy(PIXELS[..., 0])
    assert torch.equal(net.preprocess(grey[None]), net.preprocess(PIXELS[..., 0]))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.randn(3, 8, 8) * 2, "before it was normalised"),
        (torch.full((3, 8, 8), float("nan")), "values from nan to nan"),
        (torch.rand(1, 3, 8, 8), "give uint8 or floats from 0 to 1"),
        (torch.rand(8, 8, 3), "give uint8 or floats from 0 to 1"),
        (torch.rand(3, 0, 8), "give uint8 or floats from 0 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), r"torch\.int64"),
    ],
)
def test_other_tensors_are_refused(
    net: dggraph.DynamicNetwork, tensor: torch.Tensor, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        dggraph.explain(net, tensor)


def test_a_list_of_batches_is_refused_and_one_of_images_recorded(
    net: dggraph.DynamicNetwork,
) -> None:
    with pytest.raises(InputError, match=r"Give torch\.cat\(batches\)"):
        dggraph.record(net, [torch.rand(1, 3, 8, 8)])
    image = torch.rand(3, 40, 48)
    assert net.preprocess is not None
    assert torch.equal(dggraph.record(net, [image]).output, net(net.preprocess(image)))
    assert dggraph.record(net, (image,)).paths == dggraph.record(net, [image]).paths
