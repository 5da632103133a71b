"""The diverse Fashion-MNIST: made from its sources alone, kept in a file, the same every time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from idx_files import write_mnist
from numpy.typing import NDArray

from dggraph.data import diverse_fashion
from dggraph.data.diverse_fashion import draw_uniforms, read_diverse_fashion, read_halves
from dggraph.data.pixels import Pixels, attribute_counts
from dggraph.data.sources import TrainingData, open_data
from dggraph.errors import DggraphWarning, InputError, MissingExtraError
from dggraph.models.preprocessing import Preprocess
from dggraph.training.config import TrainConfig

ATTRIBUTES = ["rotation", "negative", "sketch", "photo", "scaled"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dggraph" / "diverse_fashion"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mnist(tmp_path / "fashion", num_images=30)
    return tmp_path / "fashion"


def same(one: Pixels, other: Pixels) -> bool:
    return (
        np.array_equal(one.images_NHWC, other.images_NHWC)
        and one.labels == other.labels
        and list(one.attributes) == list(other.attributes) == ATTRIBUTES
        and all(np.array_equal(v, other.attributes[name]) for name, v in one.attributes.items())
    )


def test_one_domain_is_every_image_twice_padded(tmp_path: Path) -> None:
    sources = write_mnist(tmp_path, num_images=30)
    found = read_diverse_fashion(tmp_path, "D0")
    for part, name in ((found.train, "train"), (found.validation, "t10k")):
        images, labels = sources[name]
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
        assert np.array_equal(part.images_NHWC[..., 0], padded.repeat(2, 0))
        assert part.labels == labels.repeat(2).tolist()
        assert attribute_counts(part) == {attribute: [60] for attribute in ATTRIBUTES}


def test_a_second_reading_is_the_same_and_from_the_file(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_diverse_fashion(folder, "D2")
    (file,) = cache.iterdir()
    assert file.name.startswith("D2-")
    monkeypatch.setattr(diverse_fashion, "make_part", None)
    again = read_diverse_fashion(folder, "D2")
    assert same(first.train, again.train)
    assert same(first.validation, again.validation)


def test_making_it_again_gives_the_same_bytes(folder: Path, cache: Path) -> None:
    read_diverse_fashion(folder, "D4")
    (file,) = cache.iterdir()
    before = file.read_bytes()
    file.unlink()
    read_diverse_fashion(folder, "D4")
    assert file.read_bytes() == before


def test_other_sources_or_another_recipe_are_another_file(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_diverse_fashion(folder, "D1")
    write_mnist(tmp_path / "other", num_images=29)
    read_diverse_fashion(tmp_path / "other", "D1")
    monkeypatch.setattr(diverse_fashion, "RECIPE", 1000)
    read_diverse_fashion(folder, "D1")
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_again(folder: Path, cache: Path, damage: str) -> None:
    expected = read_diverse_fashion(folder, "D0")
    (file,) = cache.iterdir()
    good = file.read_bytes()
    bad = {"cut": good[:5000], "flipped": good[:-1] + bytes([good[-1] ^ 1]), "empty": b""}[damage]
    file.write_bytes(bad)
    with pytest.warns(DggraphWarning, match="made again"):
        found = read_diverse_fashion(folder, "D0")
    assert same(found.train, expected.train)
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(DggraphWarning, match="not kept"):
        assert len(read_diverse_fashion(folder, "D0").train.labels) == 60


def test_processes_that_make_it_at_once_agree(folder: Path, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path;"
        "from dggraph.data.diverse_fashion import read_diverse_fashion as read;"
        "part = read(Path(sys.argv[1]), 'D4').train; print(int(part.images_NHWC.sum()))"
    )
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    sums = [one.communicate(timeout=900)[0] for one in several]
    assert [one.returncode for one in several] == [0, 0, 0]
    assert len(set(sums)) == 1
    assert len(list(cache.iterdir())) == 1
    assert int(read_diverse_fashion(folder, "D4").train.images_NHWC.sum()) == int(sums[0])


def test_numbers_come_from_raw_bits() -> None:
    """So that another numpy makes the same set; the first outputs of PCG64 are in its paper's code
    as well.
    """
    numbers = draw_uniforms(2, 0)
    assert numbers.shape == (2, 11)
    expected = [int(bits) >> 11 for bits in np.random.PCG64(0).random_raw(22)]
    assert (numbers.ravel() * 2.0**53).astype(np.int64).tolist() == expected
    assert numbers[0, 0] == pytest.approx(0.6369616873214543, abs=0)


def test_photographs_of_the_two_parts_share_no_pixel() -> None:
    pytest.importorskip("skimage", reason="scikit-image has the photographs")
    halves = read_halves()
    assert len(halves["train"]) == len(halves["validation"]) == 10
    for left, right in zip(halves["train"], halves["validation"], strict=True):
        assert left.shape == right.shape
        assert min(left.shape) >= 32
        assert not np.array_equal(left, right)


def test_without_scikit_image_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"dggraph\[photos\]"):
        read_diverse_fashion(folder, "H")
    read_diverse_fashion(folder, "D2")


def opened(folder: Path, channels: int, **keys: str) -> TrainingData:
    config = TrainConfig(model="resnet18", data_dir=folder, crop_padding=0, hflip=0, **keys)
    mean = (0.0,) * channels
    preprocess = Preprocess(
        input_size=(channels, 32, 32), mean=mean, std=(1.0,) * channels, crop_fraction=1.0
    )
    return open_data(config.source, preprocess, config.augmentation)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_a_data_set_by_name(folder: Path, channels: int) -> None:
    data = opened(folder, channels, dataset="diverse_fashion", domains="D4")
    expected = read_diverse_fashion(folder, "D4").validation
    image, label = data.validation[7]
    grey: NDArray[np.float32] = expected.images_NHWC[7, :, :, 0].astype(np.float32) / 255
    assert image.shape == (channels, 32, 32)
    assert all(np.array_equal(plane, grey) for plane in image.numpy())
    assert label == expected.labels[7]
    assert (
        data.facts["validation"]["rotation"]
        == np.bincount(expected.attributes["rotation"]).tolist()
    )
    attributes = data.validation.attributes  # type: ignore[attr-defined]
    assert np.array_equal(attributes["photo"], expected.attributes["photo"])


def test_domains_are_asked_for_where_they_mean_something(folder: Path) -> None:
    with pytest.raises(InputError, match="needs domains: one of D0, D1"):
        opened(folder, 3, dataset="diverse_fashion")
    with pytest.raises(InputError, match="means nothing for fashion_mnist"):
        opened(folder, 3, dataset="fashion_mnist", domains="D4")
    with pytest.raises(InputError, match="'D9': there is no such family"):
        opened(folder, 3, dataset="diverse_fashion", domains="D9")
