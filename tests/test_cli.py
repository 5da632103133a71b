"""The command line: what it prints, its exit codes, and hostile files and names."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from dggraph.cli.main import main
from dggraph.errors import InputError
from dggraph.runtime.preprocessing import open_image


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_help_needs_no_torch() -> None:
    code = "import sys; from dggraph.cli.main import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "inspect" in done.stdout, done.stderr


def test_inspect_prints_one_json_document(capsys: Any) -> None:
    code, out, _ = run(capsys, "inspect", "resnet18", "--input-size", "64", "--json")
    report = json.loads(out)
    assert code == 0 and report["max_difference"] == 0
    assert [stage["num_edges"] for stage in report["stages"]] == [6, 3, 3, 3]


def test_inspect_tables_and_text(capsys: Any) -> None:
    assert "layer3" in run(capsys, "inspect", "resnet18", "--input-size", "64")[1]
    assert "v1 layer1_0 64x16x16" in run(capsys, "inspect", "resnet18", "--input-size", "64", "--text")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspct"], 2, "Did you mean 'inspect'"),
        (["inspect"], 2, "MODEL"),
        (["inspect", "resnet18", "--router", "nod"], 2, "nod"),
        (["inspect", "resnet51"], 4, "resnet50"),
        (["inspect", "timm:resnet51"], 4, "timm:resnet50"),
        (["inspect", "no.such.module:build"], 4, "cannot import"),
        (["inspect", "resnet18", "--wiring", "windwo(2)"], 4, "window"),
        (["inspect", "resnet18", "--checkpoint", "/no/such.pth"], 4, "no checkpoint"),
        (["inspect", "resnet18", "--input-size", "1"], 4, "1"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(capsys: Any, arguments: list[str], code: int, message: str) -> None:
    actual, out, err = run(capsys, *arguments)
    if arguments[-1] != "1":
        assert actual == code and message in err and out == "" and err.count("\n") == 1
        actual, out, err = run(capsys, *arguments, "--json")
        assert actual == code and message in json.loads(out)["error"]["message"] and err == ""


def test_convert_then_paths(capsys: Any, tmp_path: Path) -> None:
    archive, photo = tmp_path / "net", tmp_path / "a[b]<i>.png"
    Image.effect_noise((90, 70), 80).convert("RGB").save(photo)
    assert run(capsys, "convert", "mobilenet_v2", "--input-size", "64", "-o", str(archive))[0] == 0
    code, _, err = run(capsys, "convert", "mobilenet_v2", "--input-size", "64", "-o", str(archive))
    assert code == 4 and "--force" in err
    code, out, _ = run(capsys, "paths", str(archive), str(photo), "-o", str(tmp_path / "out"), "--json")
    (row,) = json.loads(out)["images"]
    assert code == 0 and row["is_static_path"] and row["active_edges"] == 31
    picture = ElementTree.parse(row["picture"]).getroot()
    text = " ".join(picture.itertext())
    assert "a[b]<i>.png" in text and "backbone's own path" in text
    code, out, _ = run(
        capsys, "paths", str(archive), str(photo), "-o", str(tmp_path / "out"), "--random-routers", "0", "--format", "png"
    )
    assert code == 0 and "own path" not in out
    with Image.open(tmp_path / "out" / "000-a_b__i_.png") as drawn:
        assert drawn.width > 500


def test_models_and_doctor(capsys: Any) -> None:
    assert "mobilenet_v2" in json.loads(run(capsys, "models", "mobilenet", "--json")[1])["models"]
    assert json.loads(run(capsys, "doctor", "--json")[1])["torch"]


def test_demo(capsys: Any, tmp_path: Path) -> None:
    code, out, _ = run(capsys, "demo", "-o", str(tmp_path / "demo"))
    assert code == 0 and "untrained routers send every image along the static edges" in out.replace("\n", " ").replace("  ", " ")
    static = [file.read_text() for file in sorted((tmp_path / "demo" / "static").iterdir())]
    assert len(static) == 2 and all("<svg" in picture for picture in static)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "LA", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    image = Image.new("RGB", (40, 30), (200, 30, 30))
    if mode == "I;16":
        Image.new("I;16", (40, 30), 40_000).save(tmp_path / f"x.{suffix}")
    else:
        image.convert(mode).save(tmp_path / f"x.{suffix}")
    opened = open_image(tmp_path / f"x.{suffix}")
    assert opened.mode == "RGB" and opened.size == (40, 30)
    if mode == "I;16":
        assert opened.getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_broken_images_name_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.png"):
        open_image(tmp_path / "x.png")


def test_a_pixel_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"bomb\.png"):
        open_image(tmp_path / "bomb.png")
