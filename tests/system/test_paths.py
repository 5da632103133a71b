"""Paths that no shell has seen: home folders, both spellings of accents, variables, backslashes,
byte-order marks.
"""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dggraph
from dggraph.cli.main import main
from dggraph.errors import InputError
from dggraph.system.paths import decode_text, locate
from dggraph.training.config import TrainConfig, read_config

COMPOSED, TAKEN_APART = (unicodedata.normalize(form, "Äpfel é") for form in ("NFC", "NFD"))


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TrainConfig(model="m", data_dir="~/d", output="~/runs", checkpoint="~/w.pth")  # type: ignore[arg-type]
    assert (config.data_dir, config.output, config.checkpoint) == (
        tmp_path / "d",
        tmp_path / "runs",
        tmp_path / "w.pth",
    )
    assert locate("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert locate("a~b/~") == Path("a~b/~"), "only the first part is a home folder"
    assert locate(locate("./~/x")) == Path.cwd() / "~/x", "this folder is not the home folder"


def test_calls_expand_home_folders_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    net = dggraph.convert("dggraph:resnet8_4", torch.zeros(1, 3, 16, 16))
    Image.new("RGB", (40, 40)).save(tmp_path / "grey.png")
    net.save_pretrained("~/shared")
    dggraph.save(net, "~/saved")
    dggraph.export(net, "~/net.pt2", format="pt2")
    dggraph.explain(net, "grey.png").save("~/path.svg")
    assert sorted(os.listdir("home")) == ["net.pt2", "path.svg", "saved", "shared"]
    assert not Path("~").exists()
    assert dggraph.load("~/saved").source == dggraph.from_pretrained("~/shared").source
    assert dggraph.evaluation.open_image_set("~/..").num_images == 1


@pytest.mark.parametrize("none", [None, 3])
def test_what_is_not_a_path_is_named(none: Any) -> None:
    for read in (dggraph.load, dggraph.from_pretrained, dggraph.evaluation.open_image_set, locate):
        with pytest.raises(InputError, match=f"a path is needed, not {none}. Give a file"):
            read(none)


@pytest.mark.parametrize(("stored", "written"), [(COMPOSED, TAKEN_APART), (TAKEN_APART, COMPOSED)])
def test_accents_are_found_in_either_spelling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, written: str
) -> None:
    (tmp_path / stored / stored).mkdir(parents=True)
    assert (
        locate(tmp_path / written / written / "new" / written)
        == tmp_path / stored / stored / "new" / written
    )
    monkeypatch.chdir(tmp_path)
    assert locate(f"{written}/x") == Path(stored, "x")
    (tmp_path / written).mkdir()
    assert locate(f"{written}/x") == Path(written, "x"), "what is there as written is taken"
    assert locate("nowhere/ü") == Path("nowhere/ü")


def test_variables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    with pytest.raises(InputError, match=r"data_dir = '\$DATA/d'.*only a shell"):
        read_config(None, {"model": "m", "data_dir": "$DATA/d"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$DATA").mkdir()
    assert locate("$DATA") == Path("$DATA"), "it may be a name"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_texts_of_windows(tmp_path: Path, encoding: str, end: str) -> None:
    lines = ['model = "é"', "epochs = 3"]
    (tmp_path / "my.toml").write_bytes(end.join(lines).encode(encoding))
    config = read_config(tmp_path / "my.toml", {})
    assert (config.model, config.epochs) == ("é", 3)
    assert decode_text(end.join(lines).encode(encoding)) == "\n".join(lines)


def test_a_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_bytes('model = "é"'.encode("latin-1"))
    with pytest.raises(InputError, match=r"my\.toml is not UTF-8 text.*Save it as UTF-8"):
        read_config(tmp_path / "my.toml", {})


@pytest.mark.parametrize("path", [r"C:\Users\me", r"C:\data", r"C:\temp\new", r"D:\b"])
def test_paths_of_windows_say_how_to_write_them(tmp_path: Path, path: str) -> None:
    file = tmp_path / "my.toml"
    file.write_text(f'model = "m"\ndata_dir = "{path}"\n')
    with pytest.raises(InputError, match=r"single quotes.*'?.*/"):
        read_config(file, {})
    file.write_text(f"model = 'm'\ndata_dir = '{path}'\n")
    assert str(read_config(file, {}).data_dir) == path
    file.write_text('model = "m\ndata_dir = "/d"\n')
    with pytest.raises(InputError, match="is not TOML: Illegal character") as caught:
        read_config(file, {})
    assert "backslash" not in str(caught.value)


@pytest.mark.parametrize("flag", ["--data-dir", "--checkpoint", "--output"])
def test_flags_are_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, capsys: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[TrainConfig] = []

    def train(config: TrainConfig, _tell: Any, **_options: Any) -> None:
        seen.append(config)
        raise InputError("seen")

    monkeypatch.setattr("dggraph.training.loop.train", train)
    with pytest.raises(SystemExit):
        main(["train", "--model", "m", f"{flag}=~/x"])
    assert getattr(seen[0], flag[2:].replace("-", "_")) == tmp_path / "x"


def test_models_and_outputs_are_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """An archive in the home folder is read and one is written there, though no shell has seen
    their names.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    model = ["dggraph:resnet14_4", "--input-size=16.0", "--num-classes", "4.0"]
    for arguments in (["convert", *model, "-o", f"~/{COMPOSED}"], ["convert", *model, "-o~/net"]):
        with pytest.raises(SystemExit):
            main(arguments)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "~/net", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "SmallResNet"
    with pytest.raises(SystemExit) as ended:
        main(["inspect", f"~/{TAKEN_APART}", "--json"])
    assert ended.value.code == 0
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as ended:
        main(["atlas", "~/net", "~", "-o", "~/net.html", "--limit", "1.0", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["report"] == str(
        tmp_path / "net.html"
    )
    assert os.listdir(tmp_path / "work") == []


@pytest.mark.parametrize(
    ("text", "number"),
    [("64.0", 64), ("64", 64), ("6.4e1", 64), ("64.5", None), ("0.0", None), ("nan", None)],
)
def test_whole_numbers_in_any_spelling(text: str, number: int | None) -> None:
    from click import BadParameter

    from dggraph.cli.parameters import WholeNumber

    if number is None:
        with pytest.raises(BadParameter, match="is not"):
            WholeNumber(min=1).convert(text, None, None)
    else:
        assert WholeNumber(min=1).convert(text, None, None) == number


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """A folder as another system has named it can be trained in: its name is kept as it is."""
    config = TrainConfig(model="m", output=os.fsdecode(bytes(tmp_path) + b"/\xe9"))  # type: ignore[arg-type]
    document = json.dumps(config.model_dump(mode="json"))
    assert os.fsencode(json.loads(document)["output"]) == bytes(tmp_path) + b"/\xe9"
