"""`dggraph train`: file, flags and recipe names become one configuration; what cannot be is refused
before anything is loaded.
"""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from toy_runs import TOY

from dggraph.cli.main import main
from dggraph.errors import InputError
from dggraph.system.loaders import ENDING
from dggraph.training import loop
from dggraph.training.config import read_config


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["train", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_file_and_flags_make_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(TOY + "batch_size = 64\n")
    code, out, _ = run(
        capsys, file, "--batch-size", 8, "--output", tmp_path, "--experiment", "run", "--json"
    )
    row = json.loads(out)
    assert code == 0
    assert row["is_finished"]
    assert row["step"] == 9, "72 images in batches of 8: the flag goes first"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batch_size"] == 8


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_stopped_run_says_so_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(TOY + "batch_size = 8\n")
    real = loop.take_step

    def step(run: Any, *args: Any) -> Any:
        os.kill(os.getpid(), number)
        return real(run, *args)

    before = signal.signal(
        number, signal.default_int_handler
    )  # tests started in the background ignore some
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "take_step", step)
            code, out, _ = run(capsys, file, "--output", tmp_path, "--experiment", "run")
    finally:
        signal.signal(number, before)
    assert code == 130
    assert "stopped; the same call goes on" in out
    code, out, err = run(capsys, file, "--output", tmp_path, "--experiment", "run")
    assert code == 0
    assert "finished" in out
    assert "accuracy" in err


def test_nohup_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy.toml").write_text(TOY + "batch_size = 8\n")
    real = loop.take_step

    def step(run: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return real(run, *args)

    monkeypatch.setattr(loop, "take_step", step)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code, out, _ = run(
            capsys, tmp_path / "toy.toml", "--output", tmp_path, "--experiment", "run"
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == 0
    assert "finished" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz = 3\n", "unknown key 'epochz'.*did you mean 'epochs'"),
        ("lr = -1\n", "lr = -1.*greater than 0"),
        ("not toml", "is not TOML"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('model = "resnet18"\n' + text)
    code, _, err = run(capsys, file)
    assert code == 4, err
    assert re.search(message, err), err


def test_recipes_are_known_by_name() -> None:
    assert read_config(Path("fashion_mnist"), {"epochs": 2}).dataset == "fashion_mnist"
    with pytest.raises(InputError, match="fashion_mnist, imagenet_mobilenet_v2"):
        read_config(Path("fashion"), {})


def test_what_begins_is_said_and_how_far_it_is(tmp_path: Path, capsys: Any) -> None:
    """In plain lines where nobody watches a terminal."""
    keys = {"model": "dggraph:resnet8_4", "dataset": "toy_data:make", "input_size": "16"}
    keys |= {"epochs": "1", "batch_size": "24", "warmup_epochs": "0", "log_interval": "1"}
    flags = [text for key, value in keys.items() for text in (f"--{key.replace('_', '-')}", value)]
    code, out, err = run(capsys, *flags, "--budget", "0.9", "--output", str(tmp_path))
    assert code == 0, err
    lines = err.splitlines()
    assert lines[0].endswith("on toy_data:make: 4 classes, 72 training and 40 validation images")
    assert "parameters," in lines[1]
    assert lines[1].endswith("weights to begin with: random")
    assert lines[2].startswith("3 steps in 1 epoch; budget 0.9 of the static network's MACs; on ")
    steps = [re.match(r"step (\d)/3  loss .*  (\d+:\d\d) left$", line) for line in lines[4:7]]
    assert [found and found.group(1) for found in steps] == ["1", "2", "3"]
    assert steps[-1]
    assert steps[-1].group(2) == "0:00"
    assert "dggraph eval" in out


def test_a_static_network_has_no_budget(tmp_path: Path, capsys: Any) -> None:
    """Recipes have budgets, and train the static backbone too."""
    keys = ("--model", "dggraph:resnet8_4", "--dataset", "toy_data:make", "--input-size", "16")
    keys += ("--epochs", "1", "--batch-size", "24", "--warmup-epochs", "0")
    keys += ("--router", "none", "--budget", "0.9")
    code, _, err = run(capsys, *keys, "--output", str(tmp_path))
    assert code == 0, err
    assert err.splitlines()[2].startswith("3 steps in 1 epoch; no budget; on ")


def test_a_configuration_is_corrected_in_plain_words(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.toml").write_text(
        'model = "resnet18"\nepochs = "ten"\nbatch_size = 2.5\namp = "fp16"\nscale = [1]\n'
        "threshold_warmup = 7\nmodel_ema = 3\n"
    )
    code, _, err = run(capsys, tmp_path / "bad.toml")
    assert code == 4
    assert err.count("\n") == 1
    assert "Input should" not in err
    for words in (
        "scale in .* needs 2 values",
        "epochs = 'ten' .*: give a whole number",
        "batch_size = 2.5 .*: give a whole number",
        "amp = 'fp16' .*: give one of 'none', 'bfloat16', 'float16'",
        "threshold_warmup = 7 .*: it must be at most 1[.;]",
        "model_ema = 3 .*: give true or false",
    ):
        assert re.search(words, err), err


def test_a_folder_is_no_model_to_train(tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "--model", tmp_path, "--data-dir", "x")
    assert code == 4
    assert "converts a model by its name" in err
