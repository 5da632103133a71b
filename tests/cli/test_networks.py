"""MODEL on the command line: names, archives and runs, and where their weights come from."""

import gc
import json
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from PIL import Image
from torch import nn

import dggraph
from dggraph.cli import networks
from dggraph.cli.networks import import_torch, kind_of
from dggraph.errors import DownloadError, InputError
from dggraph.models.default_weights import fetch_default
from dggraph.models.origins import GIVEN, RANDOM, TRAINED
from dggraph.models.registry import load_model

NAME = "dggraph:resnet8_4"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "net"
    dggraph.save(dggraph.convert(NAME), folder)
    return folder


def test_the_first_import_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first, and only where collecting was on; it is on again afterwards."""
    seen: list[bool] = []
    monkeypatch.setattr(networks, "import_module", lambda _name: seen.append(gc.isenabled()))
    import_torch()
    monkeypatch.delitem(sys.modules, "torchvision")
    frozen = gc.get_freeze_count()
    try:
        import_torch()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
        gc.disable()
        import_torch()
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
    assert seen == [False]


@pytest.fixture
def place(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two photos, an archive of random weights, and one photo more in a folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for number, name in enumerate(("a.png", "b.png", "more/c.png")):
        Image.effect_noise((40, 30), 30 + 90 * number).convert("RGB").save(name)
    shutil.copytree(archive, "net")
    return tmp_path


def test_what_a_model_is_lies_in_its_folder(place: Path) -> None:
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text('{"task": "classification", "model": "x"}')
    (place / "boxes").mkdir()
    (place / "boxes" / "config.json").write_text('{"task": "detection", "model": "x"}')
    kinds = {name: kind_of(name) for name in ("net", "run", "boxes", "more", "resnet18", "")}
    assert kinds == {
        "net": "archive",
        "run": "classifier run",
        "boxes": "detector run",
        "more": "name",
        "resnet18": "name",
        "": "name",
    }


@pytest.mark.parametrize(
    ("command", "model", "message"),
    [
        ("inspect", "resnet51", "Did you mean resnet50"),
        ("bench", "more", "more is a folder, but no dggraph archive and no run"),
        ("convert", "./none", "nothing lies at that path"),
        ("paths", "dggraph:resnet9_4", "resnetDEPTH_WIDTH"),
        ("atlas", "./none", "nothing lies at that path"),
        ("eval", "more", "no dggraph archive"),
    ],
)
def test_what_no_model_is_names_the_three_kinds(
    place: Path, capsys: Any, command: str, model: str, message: str
) -> None:
    rest = {
        "convert": ["-o", "new"],
        "paths": ["a.png", "-o", "out"],
        "atlas": ["more", "-o", "x.html"],
        "eval": ["--data-dir", "more"],
    }
    code, _, err = run(capsys, command, model, *rest.get(command, []))
    assert code == 4
    assert message in err
    assert err.count("\n") == 1
    assert "is a name (" in err
    assert "an archive, or the folder of a run" in err


@pytest.mark.parametrize("model", [NAME, "net"])
def test_bench_takes_what_the_others_take(place: Path, capsys: Any, model: str) -> None:
    arguments = ("--batch-size", "2", "--kept", "1", "--rounds", "3", "--device", "cpu")
    code, out, _ = run(capsys, "bench", model, *arguments, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["router"] == "node"
    assert found["weights_origin"] == RANDOM
    (row,) = found["rows"]
    assert row["batch"] == 2
    assert {"baseline", "dense", "sparse"} <= row.keys()
    assert "auto" not in row


def test_devices_that_are_not_here(place: Path, capsys: Any) -> None:
    for device, message in (("tpu", "'tpu'"), ("cuda:99", "Leave it out"), ("meta", "cannot run")):
        if device.startswith("cuda") and torch.cuda.is_available():
            message = "GPUs count from 0"
        for arguments in (["bench", NAME], ["paths", NAME, "a.png", "-o", "out"]):
            code, out, err = run(capsys, *arguments, "--device", device)
            assert code == 2
            assert message in err
            assert not out
            assert err.count("\n") == 1
    assert not (place / "out").exists()


def test_one_picture_goes_into_the_file_that_is_named(place: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "paths", NAME, "a.png", "-o", "new/mine.svg")
    assert code == 0
    assert "Picture: new/mine.svg" in out
    assert [file.name for file in (place / "new").iterdir()] == ["mine.svg"]
    assert run(capsys, "paths", NAME, "--diff", "a.png", "b.png", "-o", "both.json")[0] == 0
    assert json.loads((place / "both.json").read_text())
    assert run(capsys, "paths", NAME, "a.png", "more", "-o", "out", "--format", "dot")[0] == 0
    assert sorted(file.name for file in (place / "out").iterdir()) == ["000-a.dot", "001-c.dot"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a.png", "more", "-o", "x.svg"], 2, "is one file, and there are 2 pictures"),
        (["a.png", "--diff", "a.png", "b.png", "-o", "x.svg"], 2, "there are 2 pictures"),
        (["a.png", "-o", "x.svg", "--format", "png"], 2, "the suffix says it"),
        (["a.png", "-o", "x.jpg"], 4, "cannot draw 'jpg'"),
    ],
)
def test_files_that_no_picture_fits(
    place: Path, capsys: Any, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = run(capsys, "paths", NAME, *arguments)
    assert found == code
    assert message in err
    assert not out


def test_random_weights_are_marked_wherever_they_speak(place: Path, capsys: Any) -> None:
    assert dggraph.load("net").weights_origin == RANDOM
    assert "net has random weights" in run(capsys, "paths", "net", "a.png", "-o", "out")[1]
    assert "random weights" in next((place / "out").iterdir()).read_text()
    run(capsys, "atlas", "net", "more", "-o", "x.html")
    assert "weights of this network are random" in (place / "x.html").read_text()
    assert json.loads((place / "x.json").read_text())["weights_origin"] == RANDOM
    assert "random" in run(capsys, "inspect", "net")[1]
    net = dggraph.load("net")
    found, recording = dggraph.explain(net, "a.png"), dggraph.record(net, "a.png")
    assert "random weights" in repr(found)
    assert "random weights" in " ".join(found.picture.facts)
    assert recording.weights_origin == RANDOM
    assert "random weights" in recording._repr_html_()
    assert dggraph.optimize_for_inference(net).weights_origin == RANDOM


def test_weights_that_somebody_brought_are_not_marked(place: Path, capsys: Any) -> None:
    """By a checkpoint, by hand, by training, or in a module of the caller's own."""
    torch.manual_seed(1)  # the archive's were drawn from seed 0
    torch.save(load_model(NAME).model.state_dict(), "x.pth")
    net = dggraph.load("net").train()
    assert deepcopy(net).double().weights_origin == RANDOM
    assert deepcopy(net).bfloat16().weights_origin == RANDOM
    other = deepcopy(net)
    other.load_state_dict({**net.state_dict(), **torch.load("x.pth")})
    assert other.weights_origin == GIVEN
    optimiser = torch.optim.SGD(net.parameters(), lr=1.0)
    net(torch.rand(4, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    assert net.weights_origin == GIVEN
    assert dggraph.convert(load_model(NAME).model).weights_origin == GIVEN
    _, out, err = run(
        capsys, "paths", NAME, "a.png", "-o", "out", "--checkpoint", "x.pth", "--json"
    )
    assert json.loads(out)["weights_origin"].startswith("checkpoint x.pth, SHA-256 ")
    assert not err
    assert "random weights" not in next((place / "out").iterdir()).read_text()


def test_archives_of_before_say_nothing_of_their_weights() -> None:
    """An archive written before there was such a field loads, and its seal holds."""
    archive = Path(__file__).parents[1] / "compatibility" / "version_1" / "kept"
    assert "weights_origin" not in json.loads((archive / "manifest.json").read_text())
    assert dggraph.load(archive).weights_origin == "unknown"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """ResNet-18's default weights, as if they had been fetched."""
    import torchvision

    state = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_args, **_options: state
    )
    return state


def test_default_weights_bring_their_preprocessing(published: dict[str, torch.Tensor]) -> None:
    loaded = load_model("resnet18", weights="default")
    assert torch.equal(loaded.model.get_parameter("fc.weight"), published["fc.weight"])
    assert loaded.weights_origin == "torchvision IMAGENET1K_V1"
    assert loaded.preprocess is not None
    assert loaded.preprocess.input_size == (3, 224, 224)
    assert loaded.preprocess.antialias
    assert loaded.preprocess.crop_fraction == 224 / 256
    assert loaded.labels is not None
    assert loaded.labels[0] == "tench"
    other = load_model("resnet18", weights="default", num_classes=5)
    assert "the head starts from new weights" in other.remarks[0]
    assert other.labels is None
    assert torch.equal(other.model.get_parameter("conv1.weight"), published["conv1.weight"])


def test_pretrained_on_the_command_line(
    place: Path, capsys: Any, published: dict[str, torch.Tensor]
) -> None:
    model = ("resnet18", "--pretrained", "--input-size", "64")
    _, out, err = run(capsys, "inspect", *model, "--json")
    assert json.loads(out)["weights_origin"] == "torchvision IMAGENET1K_V1"
    assert not err
    for option, value in (("--num-classes", "5"), ("--checkpoint", "a.png")):
        code, _, err = run(capsys, "inspect", *model, option, value)
        assert code == 2
        assert option in err
    code, _, err = run(capsys, "inspect", "net", "--pretrained")
    assert code == 2
    assert "--pretrained does not go with an archive" in err


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet18", DownloadError, "no route to host. Without a network,.* --checkpoint"),
        ("dggraph:resnet8_4", InputError, "no published weights"),
        ("small:Net", InputError, "let the function load them"),
    ],
)
def test_default_weights_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], message: str
) -> None:
    import torchvision

    def unreachable(*_args: Any, **_options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(error, match=message):
        fetch_default(name)


def test_models_that_scale_their_input_inside() -> None:
    """torchvision's GoogLeNet with its own weights: our preprocessing gives what that scaling
    gives.
    """
    import torchvision

    from dggraph.models.preprocessing import Preprocess

    model: nn.Module = torchvision.models.googlenet(
        weights=None, init_weights=False, transform_input=True
    )
    image = Image.effect_noise((40, 40), 90).convert("RGB")
    usual = Preprocess(input_size=(3, 32, 32))
    ours = Preprocess(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.testing.assert_close(model._transform_input(usual(image)), ours(image))  # type: ignore[operator]


def test_a_run_says_that_it_was_trained(place: Path, capsys: Any) -> None:
    arguments = ("train", "--model", NAME, "--dataset", "toy_data:make", "--epochs", "1")
    rest = ("--warmup-epochs", "0", "--experiment", "x", "--batch-size", "8", "--input-size", "16")
    code, _, _ = run(capsys, *arguments, *rest)
    assert code == 0
    assert dggraph.load(place / "runs/x/archive").weights_origin == TRAINED
