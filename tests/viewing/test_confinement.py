"""What the page may read: the folder's own files, and nothing that a link leads to."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from dggraph.errors import InputError
from dggraph.viewing.confinement import MAX_BYTES, MAX_GIVEN, list_given, read_within
from dggraph.viewing.gallery import MAX_DROPPED, MAX_NAME, Gallery


def photo(file: Path, size: tuple[int, int] = (8, 8)) -> bytes:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 30)).save(file)
    return file.read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos, one deeper; links to a file and a folder outside, and to the folder itself."""
    inside, outside = tmp_path / "photos", tmp_path / "private"
    photo(inside / "one.png")
    photo(inside / "deep" / "two.png")
    photo(outside / "secret.png")
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "linked").symlink_to(outside)
    (inside / "again").symlink_to(inside)
    (inside / "notes.txt").write_text("no image")
    return inside


def test_links_are_left_out_and_said(folder: Path) -> None:
    given = list_given(folder)
    assert given.names == ("deep/two.png", "one.png")
    assert any("links left out: 3" in note for note in given.notes)
    assert read_within(given.root, "one.png") == (folder / "one.png").read_bytes()


def test_a_folder_or_file_that_is_itself_a_link_may_be_given(folder: Path) -> None:
    there = folder.parent / "shortcut"
    there.symlink_to(folder)
    assert list_given(there) == list_given(folder)
    assert list_given(folder / "link.png").names == ("secret.png",)


@pytest.mark.parametrize("name", ["link.png", "linked/secret.png", "../private/secret.png"])
def test_nothing_outside_is_read_even_by_name(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="link, or leads out"):
        read_within(folder.resolve(), name)


@pytest.mark.parametrize("swapped", ["one.png", "deep"])
def test_a_link_that_took_a_place_meanwhile_is_refused(folder: Path, swapped: str) -> None:
    given = list_given(folder)
    (folder / swapped).rename(folder.parent / "before")
    outside = folder.parent / "private"
    photo(outside / "two.png")
    (folder / swapped).symlink_to(outside if swapped == "deep" else outside / "secret.png")
    name = "deep/two.png" if swapped == "deep" else "one.png"
    with pytest.raises(InputError, match="link, or leads out"):
        read_within(given.root, name)


def test_what_is_no_file_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    assert "pipe.png" not in list_given(folder).names
    with pytest.raises(InputError, match=r"'pipe\.png' is not a file"):
        read_within(folder.resolve(), "pipe.png")


def test_a_file_that_is_gone_or_too_large_is_named(folder: Path) -> None:
    root = folder.resolve()
    with pytest.raises(InputError, match=r"'gone\.png' cannot be read"):
        read_within(root, "gone.png")
    with (folder / "large.png").open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"'large\.png' has more than 16 MB"):
        read_within(root, "large.png")


def test_many_images_are_thinned_out_evenly(tmp_path: Path) -> None:
    for index in range(3 * MAX_GIVEN):
        (tmp_path / f"{index:04d}.png").touch()
    given = list_given(tmp_path)
    places = [int(name[:4]) for name in given.names]
    assert len(places) == MAX_GIVEN
    assert {b - a for a, b in pairwise(places)} == {3}
    assert any(f"{MAX_GIVEN} of {3 * MAX_GIVEN} images" in note for note in given.notes)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images"):
        list_given(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        list_given(tmp_path / "nowhere")


def test_dropped_images_are_bounded_and_never_share_a_number(tmp_path: Path) -> None:
    content, gallery = photo(tmp_path / "one.png"), Gallery(list_given(tmp_path))
    numbers, gone = [], list[int]()
    for _ in range(MAX_DROPPED + 3):
        entry, left = gallery.add(content, "x" * 999)
        numbers.append(entry.number)
        gone += left
    assert numbers == list(range(1, MAX_DROPPED + 4))
    assert gone == numbers[:3]
    assert [entry.number for entry in gallery.entries()] == [0, *numbers[3:]], "given ones stay"
    assert len(gallery.entries()[1].name) == MAX_NAME
    assert gallery.entry(gone[0]) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (b"<html>", "web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "'a<b>' is not an image"),
        (bytes(MAX_BYTES + 1), "more than 16 MB"),
    ],
)
def test_what_is_no_image_is_not_kept(content: bytes, says: str) -> None:
    gallery = Gallery()
    with pytest.raises(InputError, match=says):
        gallery.add(content, "a<b>")
    assert gallery.entries() == ()


def test_a_small_file_of_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    content = photo(tmp_path / "bomb.png", (8000, 5000))
    assert len(content) < 500_000
    with pytest.raises(InputError, match="8000x5000 pixels; the limit is 32000000"):
        Gallery().add(content, "bomb.png")
