"""The command line: what it prints, its exit codes, and hostile files and names."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from command_line import run
from PIL import Image

import dggraph
from dggraph.cli.main import main
from dggraph.errors import InputError
from dggraph.models.preprocessing import open_image


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from dggraph.cli.main import main\ntry: main(['--help'])\nfinally: assert"
        " 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "inspect" in done.stdout, done.stderr


def test_inspect_prints_one_json_document(capsys: Any) -> None:
    code, out, _ = run(capsys, "inspect", "resnet18", "--input-size", "64", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["max_difference"] == 0
    assert [stage["num_edges"] for stage in report["stages"]] == [6, 3, 3, 3]


def test_inspect_tables_and_text(capsys: Any) -> None:
    assert "layer3" in run(capsys, "inspect", "resnet18", "--input-size", "64")[1]
    assert (
        "v1 layer1_0 64x16x16"
        in run(capsys, "inspect", "resnet18", "--input-size", "64", "--text")[1]
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspct"], 2, "Did you mean 'inspect'"),
        (["inspect"], 2, "MODEL"),
        (["inspect", "resnet18", "--router", "nod"], 4, "nod"),
        (["inspect", "resnet51"], 4, "resnet50"),
        (["inspect", "timm:resnet51"], 4, "timm:resnet50"),
        (["inspect", "no.such.module:build"], 4, "cannot import"),
        (["inspect", "resnet18", "--wiring", "windwo(2)"], 4, "window"),
        (["inspect", "resnet18", "--checkpoint", "/no/such.pth"], 4, "there is no such file"),
        (["inspect", "resnet18", "--input-size", "1"], 4, "1"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    capsys: Any, arguments: list[str], code: int, message: str
) -> None:
    actual, out, err = run(capsys, *arguments)
    if arguments[-1] != "1":
        assert actual == code
        assert message in err
        assert out == ""
        assert err.count("\n") == 1
        actual, out, err = run(capsys, *arguments, "--json")
        assert actual == code
        assert message in json.loads(out)["error"]["message"]
        assert err == ""


def test_convert_then_paths(capsys: Any, tmp_path: Path) -> None:
    archive, photo = tmp_path / "net", tmp_path / "a[b]<i>.png"
    Image.effect_noise((90, 70), 80).convert("RGB").save(photo)
    assert run(capsys, "convert", "mobilenet_v2", "--input-size", "64", "-o", str(archive))[0] == 0
    code, _, err = run(capsys, "convert", "mobilenet_v2", "--input-size", "64", "-o", str(archive))
    assert code == 4
    assert "--force" in err
    code, out, _ = run(
        capsys, "paths", str(archive), str(photo), "-o", str(tmp_path / "out"), "--json"
    )
    (row,) = json.loads(out)["images"]
    assert code == 0
    assert row["is_static_path"]
    assert row["active_edges"] == 31
    picture = ElementTree.parse(row["picture"]).getroot()
    text = " ".join(picture.itertext())
    assert "a[b]<i>.png" in text
    assert "backbone's own path" in text
    code, out, _ = run(
        capsys,
        "paths",
        str(archive),
        str(photo),
        "-o",
        str(tmp_path / "out"),
        "--random-routers",
        "0",
        "--format",
        "png",
    )
    assert code == 0
    assert "own path" not in out
    with Image.open(tmp_path / "out" / "000-a_b__i_.png") as drawn:
        assert drawn.width > 500


def test_models(capsys: Any) -> None:
    assert "mobilenet_v2" in json.loads(run(capsys, "models", "mobilenet", "--json")[1])["models"]


def test_demo(capsys: Any, tmp_path: Path) -> None:
    """The shipped network knows its samples, whose paths differ."""
    code, out, _ = run(capsys, "demo", "-o", str(tmp_path / "demo"))
    assert code == 0
    assert "20 images" in out
    assert "report.html in a browser" in out
    pictures = [file.read_text() for file in sorted((tmp_path / "demo" / "paths").iterdir())]
    assert len(pictures) == 20
    assert all("<svg" in picture for picture in pictures)
    assert int(re.search(r"(\d+) paths", out).group(1)) >= 5  # type: ignore[union-attr]
    names = re.findall(r"^│ ([\w-]+)-\d\.png +│ ([\w /-]+?) [01]\.\d\d ", out, flags=re.MULTILINE)
    assert len(names) == 20
    assert all(name == re.sub(r"\W", "-", label.lower()) for name, label in names)
    assert "Content-Security-Policy" in (tmp_path / "demo" / "report.html").read_text()


def test_what_the_demo_needs_is_small() -> None:
    sizes = [
        file.stat().st_size
        for file in (Path(dggraph.__file__).parent / "assets").rglob("*")
        if file.is_file()
    ]
    assert sum(sizes) < 1_000_000


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "LA", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    image = Image.new("RGB", (40, 30), (200, 30, 30))
    if mode == "I;16":
        Image.new("I;16", (40, 30), 40_000).save(tmp_path / f"x.{suffix}")
    else:
        image.convert(mode).save(tmp_path / f"x.{suffix}")
    opened = open_image(tmp_path / f"x.{suffix}")
    assert opened.mode == "RGB"
    assert opened.size == (40, 30)
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


MODELS = """
from small import Net
from torch import nn

def fine(): return Net()
def grey(): return Net(channels=1)
def raises(): raise RuntimeError("weights server down")
def needs(width): return Net()
def sized(num_classes=5):
    model = Net()
    model.head[2] = nn.Linear(8, num_classes)
    return model
three = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "my_broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("my_models:raises", "weights server down"),
        ("my_models:needs", "width"),
        ("my_models:three", "TypeError: int is not a function"),
        ("my_models:", "cannot import"),
        (":fine", "cannot import"),
        ("my_broken:f", "SyntaxError"),
        (".", "no dggraph archive"),
        ("", "no model"),
    ],
)
def test_models_that_fail_are_one_line(capsys: Any, mine: Path, model: str, message: str) -> None:
    code, out, err = run(capsys, "inspect", model, "--input-size", "16")
    assert code == 4
    assert message in err
    assert out == ""
    assert err.count("\n") == 1
    code, out, err = run(capsys, "inspect", model, "--input-size", "16", "--json")
    assert code == 4
    assert message in json.loads(out)["error"]["message"]
    assert err == ""


def test_outputs_are_checked_before_the_work_starts(
    capsys: Any, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "dggraph.models.registry.load_model",
        lambda *_args, **_options: pytest.fail("work has started"),
    )
    (mine / "file").write_text("")
    (mine / "full").mkdir()
    for arguments in (
        ["convert", "resnet18", "-o", "file"],
        ["convert", "resnet18", "-o", "file/x"],
        ["convert", "resnet18", "-o", "full", "--force"],
        ["paths", "resnet18", "x.jpg", "-o", "file"],
        ["paths", "resnet18", "x.jpg", "-o", "/proc/none"],
        ["demo", "-o", "file"],
    ):
        code, out, err = run(capsys, *arguments)
        assert code == 4
        assert out == ""
        assert err.count("\n") == 1


def test_the_unforeseen_is_one_line_with_a_way_to_the_traceback(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("dggraph.models.registry.load_model", broken)
    code, out, err = run(capsys, "inspect", "resnet18")
    assert code == 4
    assert out == ""
    assert err.count("\n") == 1
    assert "DGGRAPH_TRACEBACK=1" in err
    assert (
        json.loads(run(capsys, "inspect", "resnet18", "--json")[1])["error"]["type"]
        == "ZeroDivisionError"
    )
    monkeypatch.setenv("DGGRAPH_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError, match="by zero"):
        main(["inspect", "resnet18"])


def test_an_archive_of_my_own_model(capsys: Any, mine: Path) -> None:
    """It says what it needs, refuses to run code by itself, and works with --backbone."""
    code, out, _ = run(
        capsys,
        "convert",
        "my_models:sized",
        "--input-size",
        "16",
        "--num-classes",
        "7",
        "-o",
        "net",
    )
    assert code == 0
    assert "--backbone my_models:sized" in out
    code, _, err = run(capsys, "inspect", "net")
    assert code == 4
    assert "--backbone" in err
    code, out, _ = run(
        capsys, "inspect", "net", "--backbone", "my_models:sized", "--num-classes", "7", "--json"
    )
    assert code == 0
    assert json.loads(out)["max_difference"] == 0
    code, _, err = run(
        capsys, "inspect", "my_models:fine", "--input-size", "16", "--backbone", "my_models:fine"
    )
    assert code == 2
    assert "goes with an archive" in err


@pytest.mark.parametrize(
    "option",
    [
        ["--wiring", "window(2)"],
        ["--checkpoint", "x"],
        ["--num-classes", "3"],
        ["--threshold", "0.1"],
    ],
)
def test_archives_take_no_model_options(capsys: Any, mine: Path, option: list[str]) -> None:
    (mine / "net").mkdir()
    (mine / "net" / "manifest.json").write_text("{}")
    code, _, err = run(capsys, "inspect", "net", *option)
    assert code == 2
    assert option[0] in err


def test_grey_images(capsys: Any, mine: Path) -> None:
    Image.effect_noise((20, 30), 80).convert("RGB").save(mine / "x.png")
    code, out, _ = run(
        capsys,
        "paths",
        "my_models:grey",
        "x.png",
        "--input-size",
        "16",
        "-o",
        "out",
        "--format",
        "dot",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["images"][0]["is_static_path"]


def test_gates_thresholds_and_both_shares(capsys: Any, mine: Path) -> None:
    options = (
        "my_models:fine",
        "--input-size",
        "16",
        "--router",
        "node(4)",
        "--gate",
        "anchored",
        "--threshold",
        "0.2",
    )
    report = json.loads(run(capsys, "inspect", *options, "--json")[1])
    assert 0 < report["routed_fraction"] <= report["covered_fraction"]
    assert report["stages"][0]["kept_because"] == ""
    assert "in routed blocks" in run(capsys, "inspect", *options)[1].replace("\n", " ")
    code, _, err = run(
        capsys, "inspect", "my_models:fine", "--input-size", "16", "--gate", "sigmoid"
    )
    assert code == 4
    assert "does not start as the backbone" in err


def test_models_in_any_case_or_none(capsys: Any) -> None:
    assert "resnet18" in run(capsys, "models", "RESNET18")[1]
    code, _, err = run(capsys, "models", "zzzz")
    assert code == 4
    assert "zzzz" in err


def test_a_size_that_changes_the_weights_comes_back(tmp_path: Path) -> None:
    """timm's vision transformers are built for the size asked for, and rebuilt for it."""
    import dggraph
    from dggraph.models.registry import load_model
    from dggraph.network.conversion import note_source_

    for name, options in (
        ("timm:vit_tiny_patch16_224", {"image_size": 32}),
        ("timm:resnet18", {}),
        ("vit_b_32", {"image_size": 32}),
    ):
        built = load_model(name, input_size=32)
        assert built.options == options
        assert built.preprocess is not None
        assert built.preprocess.input_size == (3, 32, 32)
    built = load_model("timm:vit_tiny_patch16_224", input_size=32, num_classes=7)
    net = dggraph.convert(built.model, torch.zeros(1, 3, 32, 32))
    note_source_(net, built)
    dggraph.save(net, tmp_path / "a")
    twin = dggraph.load(tmp_path / "a")
    assert twin(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    assert twin.report == net.report


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_checkpoints_that_are_none(capsys: Any, tmp_path: Path, content: bytes) -> None:
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        code, _, err = run(
            capsys,
            "inspect",
            "resnet18",
            "--input-size",
            "64",
            "--checkpoint",
            str(tmp_path / name),
        )
        assert code == 4
        assert name in err
        assert err.count("\n") == 1
        assert "Weights only" not in err
