"""Sets of images: what is in them, in which order, and what is refused."""

import gzip
import itertools
import os
import struct
from pathlib import Path

import pytest
from idx_files import write_idx
from PIL import Image

from dggraph.data.image_sets import evenly_spaced, open_image_set
from dggraph.errors import InputError


def picture(file: Path, value: int = 100) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (6, 4), value).save(file)


def test_a_folder_of_images_has_no_classes(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", ".hidden.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    os.mkfifo(tmp_path / "pipe.png")
    images = open_image_set(tmp_path)
    assert [(item.index, item.name, item.label) for item in images.items()] == [
        (0, "a.PNG", None),
        (1, "b.png", None),
    ]
    assert images.classes == ()
    assert images.num_images == 2
    assert images.num_ignored == 3
    assert images.name == tmp_path.name


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for index, name in enumerate(("dog/2.png", "cat/x/deep.png", "cat/1.png", "dog/1.jpg")):
        picture(tmp_path / name, 50 * index)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "round").symlink_to(tmp_path)
    images = open_image_set(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.num_images == 4
    found = [(item.name, item.label) for item in images.items()]
    assert found == [("cat/1.png", 0), ("cat/x/deep.png", 0), ("dog/1.jpg", 1), ("dog/2.png", 1)]
    assert [item.open().getpixel((0, 0))[0] for item in images.items()][:2] == [100, 50]  # type: ignore[index]


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    first = open_image_set(tmp_path).fingerprint
    assert open_image_set(tmp_path).fingerprint == first
    picture(tmp_path / "b.png")
    second = open_image_set(tmp_path).fingerprint
    os.utime(tmp_path / "a.png", (1, 1))
    assert len({first, second, open_image_set(tmp_path).fingerprint}) == 3


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_mnist_s_format(tmp_path: Path, suffix: str) -> None:
    write_idx(tmp_path, "train", [0] * 9, 9, suffix=suffix)
    write_idx(tmp_path, "t10k", [2, 0, 1], 3, suffix=suffix)
    images = open_image_set(tmp_path, ("shoe", "bag", "coat"))
    assert images.classes == ("shoe", "bag", "coat")
    assert images.num_images == 3
    assert images.name == f"{tmp_path.name} t10k"
    found = [
        (item.name, item.label, item.open().size, item.open().getpixel((2, 1)))
        for item in images.items()
    ]
    assert found == [("t10k 0", 2, (3, 2), 0), ("t10k 1", 0, (3, 2), 1), ("t10k 2", 1, (3, 2), 2)]
    train = open_image_set(tmp_path / f"train-images-idx3-ubyte{suffix}")
    assert train.num_images == 9
    assert train.classes == ("class 0",)


def test_mnist_s_format_without_labels(tmp_path: Path) -> None:
    images = open_image_set(write_idx(tmp_path, "test", None, 2))
    assert images.classes == ()
    assert [item.label for item in images.items()] == [None, None]


def test_damaged_files_of_mnist_s_format(tmp_path: Path) -> None:
    file = write_idx(tmp_path, "t10k", [0, 1, 2], 3)
    for content, message in (
        (b"", "t10k-images"),
        (b"hello", "t10k-images"),
        (file.read_bytes()[:30], "t10k-images"),
        (gzip.compress(struct.pack(">IIII", 0x801, 3, 2, 3)), "0x801"),
        (gzip.compress(struct.pack(">IIII", 0x803, 3, 2, 3) + bytes(7)), "ends too early"),
        (gzip.compress(struct.pack(">IIII", 0x803, 3, 1 << 31, 1 << 31)), "limit"),
        (gzip.compress(struct.pack(">IIII", 0x803, 4, 2, 3) + bytes(24)), "3 labels for 4 images"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            list(open_image_set(tmp_path).items())


def test_names_of_other_classes_are_not_borrowed(tmp_path: Path) -> None:
    """A network of 1,000 classes knows no names for ten."""
    write_idx(tmp_path, "t10k", [0, 3, 1], 3)
    for labels in (("a", "b"), tuple("abcdefgh"), None):
        assert open_image_set(tmp_path, labels).classes == (
            "class 0",
            "class 1",
            "class 2",
            "class 3",
        )


def test_what_is_no_set_of_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none' is neither a folder nor a file"):
        open_image_set(tmp_path / "none")
    with pytest.raises(InputError, match="no images"):
        open_image_set(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="MNIST"):
        open_image_set(tmp_path / "file")
    picture(tmp_path / "a.png")
    picture(tmp_path / "cat" / "b.png")
    with pytest.raises(InputError, match=r"a\.png.*cat"):
        open_image_set(tmp_path)


@pytest.mark.parametrize(
    ("number", "limit"), [(10, 3), (7, 7), (1000, 999), (5, 1), (3, 9), (4, None)]
)
def test_a_limit_takes_that_many_evenly(number: int, limit: int | None) -> None:
    is_taken = evenly_spaced(number, limit)
    taken = [index for index in range(number) if is_taken(index)]
    assert len(taken) == min(number, number if limit is None else limit)
    steps = {b - a for a, b in itertools.pairwise(taken)}
    assert not steps or max(steps) - min(steps) <= 1
