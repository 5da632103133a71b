"""Image files looked at before any work: what is said of them is what a reader finds later."""

from pathlib import Path

import pytest
from PIL import Image

from dggraph.errors import InputError
from dggraph.models.image_files import ImageFacts, inspect_image, inspect_images
from dggraph.models.preprocessing import open_image

SUFFIXES = ["jpg", "png", "gif", "webp", "tif", "bmp"]


def noise(file: Path, **options: object) -> Path:
    Image.effect_noise((120, 90), 90).convert("RGB").save(file, **options)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_file_is_found_by_its_end(tmp_path: Path, suffix: str) -> None:
    whole = noise(tmp_path / f"whole.{suffix}").read_bytes()
    assert inspect_image(tmp_path / f"whole.{suffix}") == ImageFacts(120, 90, 1)
    for length in (0, 1, 9, len(whole) // 3, len(whole) * 9 // 10, len(whole) - 100):
        (tmp_path / f"cut.{suffix}").write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"cut\.{suffix}"):
            inspect_image(tmp_path / f"cut.{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_readable_is_called_bad(tmp_path: Path, suffix: str) -> None:
    """Cameras and programs add bytes at the end."""
    file = noise(tmp_path / f"x.{suffix}")
    file.write_bytes(file.read_bytes() + b"\0" * 500 + b"written by a camera" * 20)
    open_image(file)
    assert inspect_image(file).size == inspect_image(file, "whole").size == (120, 90)


def test_damage_in_the_middle_shows_when_all_is_read(tmp_path: Path) -> None:
    content = bytearray(noise(tmp_path / "x.png").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "x.png").write_bytes(content)
    assert inspect_image(tmp_path / "x.png").size == (120, 90)
    with pytest.raises(InputError, match=r"x\.png"):
        inspect_image(tmp_path / "x.png", "whole")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_the_one_that_is_opened(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    facts = inspect_image(noise(tmp_path / "x.jpg", exif=exif))
    assert facts == ImageFacts(120, 90, orientation)
    assert facts.upright_size == open_image(tmp_path / "x.jpg").size
    assert facts.size == open_image(tmp_path / "x.jpg", is_turned=False).size


def test_many_files_in_their_order(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(30)]
    for number, file in enumerate(files):
        if number % 7:
            Image.new("L", (number + 1, 2)).save(file)
        else:
            file.write_bytes(b"")
    found = inspect_images(files)
    assert [one.width if isinstance(one, ImageFacts) else 0 for one in found] == [
        n + 1 if n % 7 else 0 for n in range(30)
    ]
    assert "0 bytes" in str(found[7])
    assert "7.png" in str(found[7])
