"""Folders of images for training and evaluation: the same images for both, bad ones named or
counted.
"""

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from dggraph.data import folders
from dggraph.data.folders import read_folder
from dggraph.data.image_sets import open_image_set
from dggraph.data.sources import TrainingData, open_data
from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess
from dggraph.training.config import TrainConfig

SMALL = Preprocess(input_size=(3, 8, 8))


def picture(file: Path, value: int = 100) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 8), value).save(file)
    return file


def parts(
    folder: Path, classes: tuple[str, ...] = ("a", "b"), *, judged: tuple[str, ...] = ()
) -> Path:
    """Images of class k have the value 50 k."""
    for part, names in (("train", classes), ("val", judged or classes)):
        for name in names:
            for number in range(2):
                value = 50 * [unicodedata.normalize("NFC", one) for one in classes].index(
                    unicodedata.normalize("NFC", name)
                )
                picture(folder / part / name / f"{number}.png", value)
    return folder


def opened(folder: Path, **keys: object) -> TrainingData:
    config = TrainConfig(model="resnet18", data_dir=folder, **keys)  # type: ignore[arg-type]
    return open_data(config.source, SMALL, config.augmentation)


def test_training_and_the_atlas_see_the_same_images(tmp_path: Path) -> None:
    parts(tmp_path)
    for name in ("a/g.gif", "a/j.JFIF", "b/v.AVIF", "b/w.webp", "b/deep/down.jp2"):
        picture(tmp_path / "val" / name.lower()).rename(tmp_path / "val" / name)
    for name in ("._0.png", ".hidden.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "val" / "a" / name).write_bytes(b"")
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    picture(tmp_path / "train" / ".ipynb_checkpoints" / "0.png")
    found, alone = opened(tmp_path), open_image_set(tmp_path / "val")
    assert found.classes == alone.classes == ("a", "b")
    assert len(found.validation) == alone.num_images == 9
    assert len(found.train) == 4
    assert [found.validation[place][1] for place in range(9)] == [
        item.label for item in alone.items()
    ]
    assert (
        found.facts["validation"]["ignored"]
        == alone.ignored
        == {
            "hidden": 3,
            ".txt": 1,
            "hidden folders": 1,
        }
    )
    assert found.notes == (
        "train: ignored: 1 hidden folders",
        (
            "val: 4 files ignored: 3 hidden, 1 without an image's suffix (.txt); ignored: 1 hidden"
            " folders"
        ),
    )


def test_a_class_stays_the_same_however_its_letters_are_composed(tmp_path: Path) -> None:
    """macOS copies: `é` in two characters, which also sorts before `f`, while in one it sorts
    behind `z`.
    """
    nfc, nfd = (
        tuple(unicodedata.normalize(form, name) for name in ("élan", "faun", "zebu"))
        for form in ("NFC", "NFD")
    )
    assert sorted(nfc) != sorted(nfd)
    assert nfc[0] != nfd[0]
    found = opened(parts(tmp_path, nfc, judged=nfd))
    assert found.classes == ("faun", "zebu", nfc[0])
    learned = {found.train[place][1]: float(found.train[place][0].mean()) for place in range(6)}
    judged = {
        found.validation[place][1]: float(found.validation[place][0].mean()) for place in range(6)
    }
    assert learned == pytest.approx(judged)
    assert len(set(learned.values())) == 3
    assert open_image_set(tmp_path / "val").classes == (nfc[0], "faun", "zebu")
    assert open_image_set(tmp_path / "val", nfd).classes == nfd, "called as the network calls them"
    picture(tmp_path / "val" / nfc[0] / "0.png")
    with pytest.raises(InputError, match=r"two folders .* are called 'élan'"):
        open_image_set(tmp_path / "val")


def test_unreadable_images_are_named_before_training_or_left_out(tmp_path: Path) -> None:
    parts(tmp_path)
    for number, content in enumerate(
        (
            b"",
            b"<!DOCTYPE html><p>404",
            b"version https://git-lfs.github.com/spec/v1\n",
            b"no image",
        )
    ):
        (tmp_path / "train" / "a" / f"bad{number}.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"bad0\.jpg") as raised:
        opened(tmp_path)
    for what in (
        "0 bytes",
        "web page",
        "git lfs pull",
        "And 1 more. That is 4 of 8 images",
        "on_bad_image",
    ):
        assert what in str(raised.value)
    found = opened(tmp_path, on_bad_image="skip")
    assert len(found.train) == 4
    assert len(found.skipped) == 4
    assert "bad3.jpg" in found.skipped[3]
    assert found.notes == ("train: 4 images that cannot be read left out",)
    assert found.facts["train"]["unreadable"] == 4
    assert found.facts["train"]["images"] == 4


def test_skip_finds_what_only_a_whole_reading_finds(tmp_path: Path) -> None:
    parts(tmp_path)
    file = tmp_path / "val" / "b" / "0.png"
    Image.effect_noise((90, 90), 90).save(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert len(opened(tmp_path).validation) == 4, "found when its turn comes"  # type: ignore[arg-type]
    assert len(opened(tmp_path, on_bad_image="skip").validation) == 3  # type: ignore[arg-type]


def test_classes_without_images_are_named(tmp_path: Path) -> None:
    parts(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    (tmp_path / "train" / "emu" / "1.heic").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"train: there are no images for the classes 'emu' \(.*\.heic"
    ):
        opened(tmp_path)
    assert open_image_set(tmp_path / "train").notes[-1] == "folders without an image: 'emu'"
    (tmp_path / "train" / "emu" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match="no images for the classes 'emu'"):
        opened(tmp_path, on_bad_image="skip")


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    for on_bad in ("error", "skip"):
        with pytest.raises(InputError, match=r"none of the 1 image in .* can be read: .*a\.png"):
            read_folder(tmp_path, on_bad)  # type: ignore[arg-type]
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(InputError, match=r"has no images.*1 file ignored.*\.heic"):
        read_folder(tmp_path, "error")


def test_images_without_folders_are_no_classes(tmp_path: Path) -> None:
    parts(tmp_path)
    picture(tmp_path / "loose" / "train" / "1.png")
    picture(tmp_path / "loose" / "val" / "1.png")
    with pytest.raises(InputError, match="no folders of images"):
        opened(tmp_path / "loose")


def test_of_a_large_set_some_are_looked_at_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts(tmp_path)
    monkeypatch.setattr(folders, "MAX_INSPECTED", 3)
    assert opened(tmp_path).notes[0] == "train: 3 of 4 image files were checked before training"


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    parts(tmp_path, ("a", "caf\udce9"))
    found = opened(tmp_path)
    assert found.classes == ("a", "caf\udce9")
    assert len(found.train) == 4
    (tmp_path / "train" / "caf\udce9" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"caf\\udce9") as raised:
        opened(tmp_path)
    str(raised.value).encode()


def test_mnist_s_format_has_no_bad_image_to_skip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on_bad_image = 'skip' means nothing for mnist"):
        opened(tmp_path, dataset="mnist", on_bad_image="skip")
