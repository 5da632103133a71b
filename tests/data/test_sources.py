"""Data sets: right images with right labels, from every layout; what is missing or damaged is
refused by name.
"""

import gzip
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from idx_files import write_array, write_mnist
from PIL import Image
from torch.utils.data import DataLoader

from dggraph.data import pixels
from dggraph.data.pixels import FASHION_CLASSES
from dggraph.data.sampler import EpochBatches, SeededDataset
from dggraph.data.sources import TrainingData, open_data
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, open_image, preprocess_image
from dggraph.training.config import TrainConfig

COLOUR = Preprocess(input_size=(3, 28, 28), crop_fraction=1.0)
GREY = Preprocess(input_size=(1, 28, 28), mean=(0.5,), std=(0.25,), crop_fraction=1.0)


def keys(dataset: str, folder: Path | None = None, **others: Any) -> TrainConfig:
    return TrainConfig(model="resnet18", dataset=dataset, data_dir=folder, **others)


def opened(config: TrainConfig, preprocess: Preprocess) -> TrainingData:
    return open_data(config.source, preprocess, config.augmentation)


def write_folders(
    folder: Path, classes: tuple[str, ...] = ("cat", "dog"), validation: str = "val"
) -> Path:
    for part in ("train", validation):
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for index in range(3):
                pixels = np.random.default_rng(10 * number + index).integers(
                    0, 256, (40, 50, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("home", "suffix"),
    [("", ".gz"), ("", ""), ("FashionMNIST/raw", ""), ("FashionMNIST/raw", ".gz")],
)
def test_fashion_mnist_from_every_layout(tmp_path: Path, home: str, suffix: str) -> None:
    made = write_mnist(tmp_path / home, suffix)
    found = opened(keys("fashion_mnist", tmp_path, crop_padding=0, hflip=0), GREY)
    assert found.classes == FASHION_CLASSES
    for dataset, (images, labels) in (
        (found.train, made["train"]),
        (found.validation, made["t10k"]),
    ):
        assert len(dataset) == 20  # type: ignore[arg-type]
        for index in range(20):
            image, label = dataset[index]
            assert label == labels[index]
            assert type(label) is int
            expected = (torch.from_numpy(images[index].astype(np.float32)) / 255 - 0.5) / 0.25
            assert torch.equal(image, expected[None])


def test_grey_images_for_a_network_that_reads_colour(tmp_path: Path) -> None:
    images, _ = write_mnist(tmp_path)["t10k"]
    found = opened(keys("mnist", tmp_path), COLOUR)
    assert found.classes == tuple("0123456789")
    assert torch.equal(
        found.validation[4][0], preprocess_image(Image.fromarray(images[4]), COLOUR)[0]
    )
    sample, _ = found.train[4]
    assert sample.shape == (3, 28, 28)
    wider = Preprocess(input_size=(3, 32, 32))
    found = opened(keys("mnist", tmp_path, crop_padding=2), wider)
    assert torch.equal(
        found.validation[4][0], preprocess_image(Image.fromarray(images[4]), wider)[0]
    )
    assert found.train[4][0].shape == (3, 32, 32)


def test_the_real_fashion_mnist() -> None:
    if not (pixels.DEBIAN_FASHION_MNIST / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("Fashion-MNIST is not here: apt-get install dataset-fashion-mnist")
    found = opened(keys("fashion_mnist", crop_padding=2), GREY)
    train: Any = found.train
    assert len(train) == 60_000
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert len(found.validation) == 10_000  # type: ignore[arg-type]
    mean, std = train.images_NCHW.float().mean() / 255, train.images_NCHW.float().std() / 255
    assert (round(float(mean), 4), round(float(std), 4)) == (
        0.2860,
        0.3530,
    )  # as published everywhere


@pytest.mark.parametrize("keep", [0, 3, 15, 0.5, 0.99])
@pytest.mark.parametrize(
    "name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte"]
)
def test_a_short_file_is_refused_by_name(tmp_path: Path, name: str, keep: float) -> None:
    write_mnist(tmp_path, Path(name).suffix)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)]
    )
    with pytest.raises(InputError, match=name):
        opened(keys("fashion_mnist", tmp_path), GREY)


def test_a_flipped_bit_in_a_packed_file_is_noticed(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    content = bytearray(
        gzip.compress(gzip.decompress(file.read_bytes()), 0)
    )  # stored, so that only the checksum tells
    content[5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz cannot be read: CRC"):
        opened(keys("mnist", tmp_path), GREY)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_array(tmp_path / "train-labels-idx1-ubyte.gz", np.full(19, 3, np.uint8))
    with pytest.raises(InputError, match="19 labels for 20 images"):
        opened(keys("mnist", tmp_path), GREY)
    write_array(tmp_path / "train-labels-idx1-ubyte.gz", np.full(20, 10, np.uint8))
    with pytest.raises(InputError, match="label 10"):
        opened(keys("mnist", tmp_path), GREY)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        InputError, match=r"train-labels-idx1-ubyte\.gz cannot be read: .*No such file"
    ):
        opened(keys("mnist", tmp_path), GREY)


@pytest.mark.parametrize("name", ["fashion_mnist", "mnist", "cifar10", "cifar100"])
def test_a_missing_set_says_where_it_must_be_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    place = {
        "fashion_mnist": "FashionMNIST/raw",
        "mnist": "MNIST/raw",
        "cifar10": "cifar-10-batches-py",
    }
    with pytest.raises(
        InputError, match=f"{tmp_path}/{place.get(name, 'cifar-100-python')}.*download=True"
    ):
        opened(keys(name, tmp_path), COLOUR)
    if name != "fashion_mnist":
        with pytest.raises(InputError, match=f"{name} needs data_dir"):
            opened(keys(name), COLOUR)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_colour_and_grey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Files of the real layout; their digests are the real set's, so the check is taken out."""
    is_ten = name == "cifar10"
    home, classes = (
        tmp_path / ("cifar-10-batches-py" if is_ten else "cifar-100-python"),
        [f"c{i}" for i in range(10 if is_ten else 100)],
    )
    home.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    labels = [7, 0, 3, 9]
    for part in (
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if is_ten else ["train", "test"]
    ):
        (home / part).write_bytes(
            pickle.dumps({"data": rows, "labels" if is_ten else "fine_labels": labels})
        )
    meta = {"label_names" if is_ten else "fine_label_names": classes}
    (home / ("batches.meta" if is_ten else "meta")).write_bytes(pickle.dumps(meta))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    preprocess = Preprocess(input_size=(3, 32, 32), crop_fraction=1.0)
    found = opened(keys(name, tmp_path, crop_padding=4), preprocess)
    assert found.classes == tuple(classes)
    assert len(found.train) == (20 if is_ten else 4)  # type: ignore[arg-type]
    image = Image.fromarray(rows[3].reshape(3, 32, 32).transpose(1, 2, 0))
    sample, label = found.validation[3]
    assert label == 9
    assert torch.equal(sample, preprocess_image(image, preprocess)[0])
    grey = Preprocess(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,), crop_fraction=1.0)
    assert torch.equal(
        opened(keys(name, tmp_path), grey).validation[3][0], preprocess_image(image, grey)[0]
    )


@pytest.mark.parametrize("validation", ["val", "validation", "valid"])
def test_folders_of_images(tmp_path: Path, validation: str) -> None:
    found = opened(
        keys("imagefolder", write_folders(tmp_path, validation=validation)),
        Preprocess(input_size=(3, 24, 24)),
    )
    assert found.classes == ("cat", "dog")
    assert (
        [found.validation[i][1] for i in range(6)]
        == [found.train[i][1] for i in range(6)]
        == [0, 0, 0, 1, 1, 1]
    )
    image = open_image(tmp_path / validation / "dog" / "1.png")
    assert torch.equal(
        found.validation[4][0], preprocess_image(image, Preprocess(input_size=(3, 24, 24)))[0]
    )
    assert found.train[4][0].shape == (3, 24, 24)
    assert not torch.equal(found.train[4][0], found.train[4][0])


def test_folders_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="imagefolder needs data_dir"):
        opened(keys("imagefolder"), COLOUR)
    with pytest.raises(InputError, match=f"no folder {tmp_path}/train"):
        opened(keys("imagefolder", tmp_path), COLOUR)
    write_folders(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(InputError, match=f"no folder {tmp_path}/val"):
        opened(keys("imagefolder", tmp_path), COLOUR)
    (tmp_path / "test").rename(tmp_path / "val")
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    with pytest.raises(
        InputError, match=r"only in the first \['dog'\], only in the second \['wolf'\]"
    ):
        opened(keys("imagefolder", tmp_path), COLOUR)
    (tmp_path / "val" / "wolf").rename(tmp_path / "val" / "dog")
    (tmp_path / "val" / "emu").mkdir()
    with pytest.raises(InputError, match=f"{tmp_path}/val: .*emu"):
        opened(keys("imagefolder", tmp_path), COLOUR)


FORK = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # Python 3.12 warns of torch's threads


@FORK
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_when_its_turn_comes(tmp_path: Path, workers: int) -> None:
    write_folders(tmp_path)
    broken = tmp_path / "train" / "cat" / "2.png"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 255
    broken.write_bytes(content)
    found = opened(keys("imagefolder", tmp_path), COLOUR)
    loader: DataLoader[Any] = DataLoader(found.train, batch_size=6, num_workers=workers)
    with pytest.raises(InputError, match=r"train/cat/2\.png"):
        list(loader)


@FORK
def test_loader_processes_give_the_samples_of_one(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    found = opened(keys("mnist", tmp_path, crop_padding=2, randaugment=(1, 5)), GREY)

    def samples(train: Any, workers: int) -> list[Any]:
        batches = EpochBatches([0] * 20, 4, seed=3, epoch=1)
        return list(DataLoader(SeededDataset(train, 3), batch_sampler=batches, num_workers=workers))

    alone = samples(found.train, 0)
    for others in (samples(found.train, 2), samples(pickle.loads(pickle.dumps(found.train)), 0)):
        for (images, labels), (other_images, other_labels) in zip(alone, others, strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)


class Fixed(torch.utils.data.Dataset[Any]):
    """Two samples."""

    def __init__(self, shape: tuple[int, ...] = (3, 28, 28), label: int = 1) -> None:
        self.shape, self.label = shape, label

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(self.shape), self.label


def make(config: TrainConfig) -> Any:
    """What `package.module:function` may return; the case is in `experiment`."""
    if config.experiment == "raises":
        raise OSError("disk on fire")
    fixed = {"shape": Fixed((28, 28, 3)), "label": Fixed(label=2)}.get(config.experiment, Fixed())
    cases = {"one": TrainingData(Fixed(), fixed, ("a", "b")), "two": (Fixed(), fixed), "none": None}
    return cases.get(config.experiment, (Fixed(), fixed, ["a", "b"]))


def test_a_function_of_the_users_own() -> None:
    for case in ("three", "one"):
        before = torch.random.get_rng_state()
        found = opened(keys("test_sources:make", experiment=case), COLOUR)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert found.classes == ("a", "b")
        assert len(found.train) == 2


@pytest.mark.parametrize(
    ("case", "culprit"),
    [
        ("raises", "test_sources:make.*OSError: disk on fire"),
        ("two", "test_sources:make is not a data set: IndexError"),
        ("none", "test_sources:make is not a data set: TypeError"),
        (
            "shape",
            (
                r"image of validation is torch.float32 \(28, 28, 3\), but the network reads"
                r" torch.float32 \(3, 28, 28\)"
            ),
        ),
        ("label", "label of validation is 2, but there are 2 classes"),
    ],
)
def test_a_function_that_gives_something_else(case: str, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        opened(keys("test_sources:make", experiment=case), COLOUR)


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no dataset 'cifar1'\. Did you mean 'cifar10'"):
        opened(keys("cifar1"), COLOUR)
    with pytest.raises(InputError, match="cannot import 'test_sources:nothing'"):
        opened(keys("test_sources:nothing"), COLOUR)
    write_mnist(tmp_path)
    with pytest.raises(InputError, match="mnist has 10 classes, but num_classes = 9"):
        opened(keys("mnist", tmp_path, num_classes=9), COLOUR)


def test_nothing_of_the_test_module_is_imported_twice() -> None:
    """`package.module:function` finds this very module, as pytest put it on the path."""
    assert sys.modules["test_sources"].make is make
