"""Which files of a folder are images; nothing of what is left out goes uncounted."""

import os
from pathlib import Path

import pytest

from dggraph.data.listing import SUFFIXES, describe_ignored, list_images, num_files
from dggraph.errors import InputError
from dggraph.models.preprocessing import open_image


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_every_suffix_in_any_case(tmp_path: Path) -> None:
    names = {f"{number}{suffix}" for number, suffix in enumerate(sorted(SUFFIXES))} | {
        "A.JPG",
        "b.Png",
        "c.d.TiFf",
        " .jpeg",
    }
    found, ignored = list_images(touch(tmp_path, *names))
    assert set(found) == names
    assert not ignored


def test_what_nobody_put_there_is_ignored_and_counted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.png",
        "._a.png",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "x/.y.jpg",
        "notes.txt",
        "list.csv",
        "README",
        "a.0001",
    )
    touch(
        tmp_path,
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/._a.png",
        "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg",
        "x/.git/b.png",
    )
    os.mkfifo(tmp_path / "pipe.png")
    found, ignored = list_images(tmp_path)
    assert found == ["a.png"]
    assert ignored == {
        "hidden": 5,
        ".txt": 1,
        ".csv": 1,
        "no suffix": 2,
        "neither file nor folder": 1,
        "hidden folders": 4,
    }
    assert num_files(ignored) == 10
    assert (
        describe_ignored(ignored)
        == "10 files ignored: 5 hidden, 1 neither file nor folder, 4 without an image's suffix"
        " (.csv, .txt, no suffix); ignored: 4 hidden folders"
    )
    assert describe_ignored({}) == ""
    assert describe_ignored({"hidden": 1}) == "1 file ignored: 1 hidden"


def test_the_order_is_torchvision_s(tmp_path: Path) -> None:
    datasets = pytest.importorskip(
        "torchvision.datasets", reason="its order is what ours is compared with"
    )
    names = (
        "c/b/2.png",
        "c/b/1.png",
        "c/b-a/3.png",
        "c/0.png",
        "c/B/4.png",
        "c/a/x/y/5.png",
        "c/a.png/6.png",
        "c/10.png",
        "c/9.png",
    )
    touch(tmp_path, *names)
    theirs = [
        os.path.relpath(file, tmp_path / "c")
        for file, _ in datasets.ImageFolder(str(tmp_path)).samples
    ]
    assert list_images(tmp_path / "c")[0] == theirs


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "set/cat/1.png", "set/cat/in/2.png", "elsewhere/3.png", "elsewhere/deep/4.png")
    cat = tmp_path / "set" / "cat"
    (cat / "far").symlink_to(tmp_path / "elsewhere")
    (cat / "again").symlink_to(cat / "in")
    (cat / "round").symlink_to(cat)
    (cat / "in" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "elsewhere" / "back").symlink_to(cat)
    (cat / "5.png").symlink_to(tmp_path / "elsewhere" / "3.png")
    found, ignored = list_images(cat, above=[tmp_path / "set"])
    assert found == ["1.png", "5.png", "far/3.png", "far/deep/4.png", "in/2.png"]
    assert ignored == {"links to folders that are read already": 4}


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    """Without a memory of where it has been, a walk through n folders that link to each other has
    n! ends.
    """
    folders = [tmp_path / f"{number}" for number in range(12)]
    for folder in folders:
        touch(folder, "a.png")
        for other in folders:
            if other != folder:
                (folder / f"to{other.name}").symlink_to(other)
    for start in (tmp_path, folders[0]):
        found = list_images(start)[0]
        assert len(found) == 12, "each once"
        assert {(start / name).resolve() for name in found} == {
            (folder / "a.png").resolve() for folder in folders
        }


def test_a_link_to_nothing_or_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    (tmp_path / ".hidden").symlink_to(tmp_path / ".hidden")
    found, ignored = list_images(tmp_path)
    assert found == ["gone.png", "round.png"]
    assert ignored == {"hidden": 1}
    for name in found:
        with pytest.raises(InputError, match=name):
            open_image(tmp_path / name)


def test_what_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        list_images(tmp_path / "none")
