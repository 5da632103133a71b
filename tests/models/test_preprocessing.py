"""Hostile image files: read upright, in RGB, from the first frame, or refused by name; never a
hang, never out of memory.
"""

import os
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dggraph.errors import InputError
from dggraph.models.preprocessing import Preprocess, open_image

RED = (200, 30, 30)


def bomb(file: Path, width: int, height: int) -> None:
    """A grey PNG of a few kilobytes whose pixels are all black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "size", [(20_000, 20_000), (12_000, 9_000), (1, 150_000_000), (100_000, 100_000)]
)
def test_a_bomb_is_refused_without_being_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] <= 400_000_000 and size[0] > 1:
        bomb(tmp_path / "bomb.png", *size)
        assert (tmp_path / "bomb.png").stat().st_size < 60_000
    else:
        header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
        content = (
            struct.pack(">I", 13)
            + b"IHDR"
            + header
            + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        )
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
@pytest.mark.parametrize("keep", [0, 1, 9, 0.3, 0.9])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, keep: float) -> None:
    Image.effect_noise((120, 90), 90).convert("RGB").save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    length = int(keep * len(content)) if 0 < keep < 1 else int(keep)
    (tmp_path / f"cut.{suffix}").write_bytes(content[:length])
    with pytest.raises(InputError, match=rf"cut\.{suffix}"):
        open_image(tmp_path / f"cut.{suffix}")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_damaged_files_are_read_or_refused_but_nothing_else(tmp_path: Path, suffix: str) -> None:
    """Every reader of Pillow meets bytes that are not what they were."""
    Image.effect_noise((60, 50), 90).convert("RGB").save(tmp_path / f"x.{suffix}")
    whole = (tmp_path / f"x.{suffix}").read_bytes()
    for seed in range(40):
        damaged = bytearray(whole)
        for step in range(1 + seed % 5):
            damaged[
                (seed * 7919 + step * 104729) % min(len(whole), 400 if seed % 2 else len(whole))
            ] ^= 1 << (seed % 8)
        (tmp_path / f"x.{suffix}").write_bytes(damaged)
        refusal = ""
        try:
            mode = open_image(tmp_path / f"x.{suffix}").mode
        except InputError as error:
            refusal = str(error)
        assert f"x.{suffix}" in refusal if refusal else mode == "RGB"


def test_the_camera_s_rotation_is_undone(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    image.save(tmp_path / "x.jpg", exif=exif, quality=100)
    opened = open_image(tmp_path / "x.jpg")
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 5))[2] > 200
    assert opened.getpixel((10, 35))[0] > 150


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "mpo", "tif"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], duration=50)
    red, green, blue = open_image(tmp_path / f"x.{suffix}").getpixel((5, 5))  # type: ignore[misc]
    assert red > 150
    assert green < 90
    assert blue < 90


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    for value in (0, 256, 40_000, 65_535):
        Image.new("I;16", (4, 3), value).save(tmp_path / "x.png")
        assert open_image(tmp_path / "x.png").getpixel((0, 0)) == (value // 256,) * 3


def test_a_pil_image_has_the_pixels_of_its_file(tmp_path: Path) -> None:
    preprocess = Preprocess(input_size=(3, 16, 16))
    Image.fromarray(np.arange(0, 65_536, 64, dtype=np.uint16).reshape(32, 32)).save(
        tmp_path / "x.png"
    )
    with Image.open(tmp_path / "x.png") as image:
        assert torch.equal(preprocess(image), preprocess(tmp_path / "x.png"))
    for mode, what in (("F", "32-bit floats"), ("I", "integers of 32 bits")):
        with pytest.raises(InputError, match=f"the image holds {what}"):
            preprocess(Image.new(mode, (20, 20)))


def test_cmyk_and_palettes_keep_their_colour(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20), RED)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("cmyk.jpg", "palette.png"):
        pixel = open_image(tmp_path / name).getpixel((9, 9))
        assert max(abs(a - b) for a, b in zip(pixel, RED, strict=True)) < 12, name  # type: ignore[arg-type]


def test_formats_that_start_programs_are_not_read(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript."""
    (tmp_path / "x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(InputError, match=r"x\.png"):
        open_image(tmp_path / "x.png")


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    code = (
        "import sys\nfrom dggraph.errors import InputError\nfrom dggraph.models.preprocessing"
        " import open_image\ntry: open_image(sys.argv[1])\nexcept InputError as error: assert"
        " 'pipe.png' in str(error); print('refused')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pipe.png")],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.stdout == "refused\n", done.stderr
    with pytest.raises(InputError, match="is not a file"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="none"):
        open_image(tmp_path / "none.png")
