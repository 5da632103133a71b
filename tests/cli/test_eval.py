"""`dggraph eval`: one JSON document, tables for people, the same numbers on two processes, exit
codes.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ON_TWO_PROCESSES
from PIL import Image
from reference import randomise, randomise_routers
from toy_data import Toy

import dggraph
from dggraph.cli.main import main
from dggraph.models.registry import load_model
from dggraph.network.conversion import note_source_

TOY = ("--dataset", "toy_data:make")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    built = load_model("dggraph:resnet20_4", num_classes=4, input_size=16)
    randomise(built.model)
    net = randomise_routers(dggraph.convert(built.model, torch.zeros(1, 3, 16, 16)), 1)
    note_source_(net, built)
    folder = tmp_path_factory.mktemp("made") / "archive"
    dggraph.save(net, folder, labels=["a", "b", "c", "d"])
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_document_counts_what_the_network_answers(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, archive, *TOY, "--json")
    found, toy = json.loads(out), Toy(40, False, 1)
    with torch.no_grad():
        is_right = dggraph.load(archive)(toy.images).argmax(1) == toy.labels
    assert code == 0
    assert found["num_images"] == 40
    assert found["top1"] == int(is_right.sum())
    assert found["accuracy"] == found["top1"] / 40
    assert found["top5"] == 40, "there are four classes"
    for label, row in enumerate(found["classes"]):
        of_class = toy.labels == label
        assert row["class"] == "abcd"[label]
        assert row["num_images"] == int(of_class.sum())
        assert row["top1"] == int(is_right[of_class].sum())
    assert found["kept_percentiles"]["5"] <= found["kept"] <= found["kept_percentiles"]["95"]
    assert found["num_paths"] > 1
    assert found["images_per_second"] > 0
    code, out, _ = run(capsys, archive, *TOY, "--limit", 8, "--json")
    assert json.loads(out)["top1"] == int(is_right[4::5].sum())


def test_two_processes_find_what_one_finds(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(archive),
        *TOY,
        "--validation-batch-size",
        "8",
        "--budget",
        "0.9",
        "--sensitivity",
        "--json",
    ]
    code, out, _ = run(capsys, *arguments)
    alone = json.loads(out)
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tests / 'helpers'}:{tests.parent}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [*ON_TWO_PROCESSES, "-m", "dggraph", "eval"]
    done = subprocess.run(
        [*command, *arguments],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert code == 0, done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    both = json.loads(done.stdout)
    assert (alone.pop("num_processes"), both.pop("num_processes")) == (1, 2)
    for document in (alone, both):
        del document["images_per_second"]
    assert both == alone


def test_a_curve_is_kept_in_the_archive(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = dggraph.load(archive)
    dggraph.save(net, tmp_path / "mine")
    code, out, _ = run(
        capsys,
        tmp_path / "mine",
        *TOY,
        "--budget",
        0.9,
        "--budget",
        0.7,
        "--save",
        tmp_path / "mine",
        "--json",
    )
    budgets = json.loads(out)["budgets"]
    again = dggraph.load(tmp_path / "mine")
    assert code == 0
    assert again.budgets is not None
    assert [budget.threshold for budget in again.budgets.budgets] == [
        row["threshold"] for row in budgets["targets"]
    ]
    assert budgets["calibration"]["num_images"] == budgets["before"]["num_images"] == 20
    assert "even places" in budgets["halves"]
    for key, value in net.lowered.state_dict().items():
        assert torch.equal(again.lowered.state_dict()[key], value), key
    assert (again.labels, again.preprocess) == (net.labels, net.preprocess)


def test_tables_for_people(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, archive, *TOY, "--budget", 0.9, "--sensitivity")
    assert code == 0
    assert not err
    for part in (
        "top-1 ",
        "MACs ratio",
        "distinct paths",
        "images/s",
        "as it is",
        "even places",
        "layer1_0",
        "The static network",
    ):
        assert part in out


def test_a_folder_of_images_serves_sensitivity(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 10, 200)).save(tmp_path / f"{number}.png")
    code, out, _ = run(capsys, archive, "--data-dir", tmp_path, "--sensitivity", "--json")
    found = json.loads(out)
    assert code == 0
    assert "accuracy" not in found
    assert found["sensitivity"]["static_top1"] is None
    blocks: list[dict[str, Any]] = found["sensitivity"]["blocks"]
    assert len(blocks) == 7
    assert all(
        row["top1_change"] is None and row["agreement"] <= 3 and row["macs_saved"] > 0
        for row in blocks
    )
    code, out, _ = run(capsys, archive, "--data-dir", tmp_path, "--json")
    assert code == 4
    assert "have no classes" in json.loads(out)["error"]["message"]
    (tmp_path / "3.png").write_bytes(b"no image")
    code, out, _ = run(capsys, archive, "--data-dir", tmp_path, "--sensitivity", "--json")
    assert code == 4
    assert "3.png' is not an image that can be read" in json.loads(out)["error"]["message"]


def test_hostile_class_names_are_printed_as_they_are(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, names = dggraph.load(archive), ["[/b]", "[red]x", "<b>", "z\x1b[2J"]
    dggraph.save(net, tmp_path / "net", labels=names)
    for name in ("[red]x", "z\x1b[2J"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (80, 10, 200)).save(tmp_path / "val" / name / "1.png")
    code, out, err = run(capsys, tmp_path / "net", "--data-dir", tmp_path)
    assert code == 0
    assert not err
    assert "[/b]" in out
    assert "[red]x" in out
    assert "\x1b" not in out


def test_a_static_path_that_training_left_is_no_reference(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dggraph.cli.eval_numbers import sensitivity_numbers
    from dggraph.evaluation.sensitivity import Sensitivity

    costs = Sensitivity(num_images=100, static_top1=50, blocks=(), unskippable=())
    assert "50 of 100 right, along its own paths 56" in sensitivity_numbers(costs, 56)["warning"]
    assert sensitivity_numbers(costs, 55)["warning"] is None
    assert sensitivity_numbers(costs, None)["warning"] is None


def test_what_cannot_be_is_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, message in (
        ((archive, *TOY, "--save", tmp_path / "a"), 2, "give at least one --budget"),
        ((archive, *TOY, "--budget", 0), 2, "'--budget'"),
        ((archive, *TOY, "--router", "stage"), 2, "--router does not go with an archive"),
        ((archive, *TOY, "--threshold", 0.5), 2, "--threshold does not go with an archive"),
        ((archive, *TOY, "--budget", 0.9, "--save", tmp_path), 4, "exists and is not"),
        (
            (archive, "--dataset", "fashion"),
            4,
            "no dataset 'fashion'. Did you mean 'fashion_mnist'",
        ),
        ((archive,), 4, "imagefolder needs data_dir"),
        ((tmp_path / "none", *TOY), 4, "no model"),
    ):
        found, out, err = run(capsys, *arguments)
        assert found == code, (arguments, err)
        assert message in err, (arguments, err)
        assert not out, (arguments, err)


@pytest.mark.parametrize(("rank", "is_told"), [("0", True), ("1", False)])
def test_one_process_alone_prints_errors_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, is_told: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    code, out, err = run(capsys, "resnet18", "--save", "a", "--json")
    assert code == 2
    assert ("error" in out) == is_told
    assert ("--budget" in err) != is_told
