"""`dggraph thin`: its files load into plain code, are measured on other images, and train."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from reference import randomise
from torch import nn
from toy_data import Toy

import dggraph
from dggraph.cli.main import main
from dggraph.errors import ArchiveError
from dggraph.models.registry import load_model
from dggraph.network.conversion import note_source_
from dggraph.training.classifier_runs import open_classifier

pytestmark = pytest.mark.cpu

TOY = ("--dataset", "toy_data:make")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = load_model("dggraph:resnet20_4", num_classes=4, input_size=16)
    randomise(built.model)
    net = dggraph.convert(built.model, torch.zeros(1, 3, 16, 16))
    note_source_(net, built)
    folder = tmp_path_factory.mktemp("made") / "archive"
    dggraph.save(net, folder, labels=["a", "b", "c", "d"])
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["thin", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def plainly(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in plain code, from the two files alone."""
    facts = json.loads((folder / "thin.json").read_bytes())
    model = load_model(facts["model"], **facts["options"]).model
    for path in facts["removed"]:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, nn.Identity())
    model.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    return model.eval(), facts


def test_the_files_hold_the_smaller_network_and_it_is_fine_tuned(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "thinned"
    tuning = ("--epochs", 1, "--batch-size", 8, "--seed", 3)
    code, said, _ = run(capsys, archive, *TOY, "--budget", 0.7, "-o", out, *tuning, "--json")
    assert code == 0
    model, facts = plainly(out)
    assert json.loads(said) == facts
    assert facts["is_met"]
    assert facts["kept"] <= 0.7
    own, weights = dggraph.load(archive).state_dict(), model.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in weights.items())
    toy = Toy(40, False, 1)
    with torch.no_grad():
        is_right = (model(toy.images).argmax(1) == toy.labels)[1::2]
    assert facts["num_images"] == {"chosen on": 20, "measured on": 20}
    assert facts["accuracy"]["thinned"] == float(is_right.double().mean())

    tuned = safetensors.torch.load_file(Path(facts["fine_tuned"]) / "backbone.safetensors")
    assert tuned.keys() == weights.keys()
    assert any(not torch.equal(tensor, weights[key]) for key, tensor in tuned.items())
    model.load_state_dict(tuned)
    with torch.no_grad():
        is_right = (model(toy.images).argmax(1) == toy.labels)[1::2]
    assert facts["accuracy"]["fine-tuned"] == float(is_right.double().mean())
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(out / "fine-tuned"), *TOY, "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        assert found["top1"] == int((model(toy.images).argmax(1) == toy.labels).sum())

    before = {file.name: file.read_bytes() for file in out.glob("*.*")}
    code, _, told = run(capsys, archive, *TOY, "--budget", 0.9, "-o", out)
    assert code == 4
    assert "fine-tuned without other blocks" in told
    assert {file.name: file.read_bytes() for file in out.glob("*.*")} == before

    # its name alone would build the blocks again, so an archive of it needs the smaller model
    opened, _ = open_classifier(out / "fine-tuned")
    opened.save_pretrained(tmp_path / "shared")
    with pytest.raises(ArchiveError, match="model="):
        dggraph.load(tmp_path / "shared")
    with torch.no_grad():
        shared = dggraph.load(tmp_path / "shared", plainly(out)[0])
        assert torch.equal(shared(toy.images), opened(toy.images))

    # the run of a thinned network is timed, and thinned further, like any other
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(out / "fine-tuned"), "--rounds", "3", "--kept", "1", "--json"])
    assert not ended.value.code
    capsys.readouterr()
    again = tmp_path / "again"
    code, _, _ = run(capsys, out / "fine-tuned", *TOY, "--budget", 0.8, "-o", again)
    assert code == 0
    smaller, more = plainly(again)
    assert more["removed"][: len(facts["removed"])] == facts["removed"]
    assert len(more["removed"]) > len(facts["removed"])
    with torch.no_grad():
        is_right = (smaller(toy.images).argmax(1) == toy.labels)[1::2]
    assert more["accuracy"]["thinned"] == float(is_right.double().mean())


def test_people_read_what_went_and_a_missed_budget(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = run(capsys, archive, *TOY, "--budget", 0.05, "-o", tmp_path, "--limit", 8)
    assert code == 0
    assert "budget 0.05 missed, since no other block can be taken out" in said
    assert "accuracy on 4 other images: backbone" in said
    assert not (tmp_path / "fine-tuned").exists()


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--budget", 1.0), 2, "--budget"),
        (("--budget", 0.7, "--lr", 0.1), 2, "--lr, --batch-size and --seed go with --epochs"),
    ],
)
def test_mistakes_are_named(
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[object, ...],
    code: int,
    why: str,
) -> None:
    found, _, said = run(capsys, archive, *TOY, *words, "-o", tmp_path)
    assert found == code
    assert why in said
