"""Flags: every key has one, only those given count, and `--help` needs no torch."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from command_line import run

from dggraph.cli.flags import config_flags, config_flags_for
from dggraph.errors import InputError
from dggraph.models.registry import model_names
from dggraph.training.config import TrainConfig, read_config

RECIPES = sorted(Path(str(resources.files("dggraph"))).glob("recipes/*.toml"))
VALUES: dict[str, Any] = {
    "model": "resnet18", "checkpoint": Path("a.pth"), "num_classes": 7, "input_size": 64, "wiring":
    "window(3)", "residual": "lift",
    "max_size": 96, "router": "stage", "gate": "sigmoid", "init": "scratch", "dataset": "mnist",
    "data_dir": Path("d"), "mean": (0.1, 0.2, 0.3),
    "std": (0.5, 0.25, 1.0), "interpolation": "bicubic", "crop_pct": 0.9, "scale": (0.2, 0.75),
    "ratio": (0.5, 2.0), "crop_padding": 4,
    "hflip": 0.0, "color_jitter": 0.4, "randaugment": (2, 9), "reprob": 0.25, "mixup": 0.2,
    "cutmix": 1.0, "smoothing": 0.1,
}  # fmt: skip


def given(arguments: list[str]) -> dict[str, Any]:
    """What a command with these flags is called with."""
    seen: dict[str, Any] = {}

    @click.command()
    @config_flags
    def command(**overrides: Any) -> None:
        seen.update(overrides)

    result = CliRunner().invoke(command, arguments)
    if result.exit_code:
        raise click.UsageError(result.output)
    return seen


def as_flags(values: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(flag if value else flag.replace("--", "--no-", 1))
        elif key in ("mean", "std", "decay_milestones"):
            arguments += [part for one in value for part in (flag, str(one))]
        else:
            arguments += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments


def test_every_key_is_a_flag_and_none_is_given_by_default() -> None:
    found = given([])
    assert list(found) == list(TrainConfig.model_fields)
    assert all(value is None for value in found.values())


@pytest.mark.parametrize("is_on", [True, False])
def test_flags_give_the_configuration_they_say(is_on: bool) -> None:
    values = dict(VALUES)
    for name, field in TrainConfig.model_fields.items():
        if field.annotation is bool:
            values[name] = is_on
        elif name not in values and field.default is not None and name != "experiment":
            values[name] = field.default
    values |= {"router_lr": 0.5, "clip_grad": 1.5, "budget": 0.7, "experiment": "e"}
    assert read_config(None, given(as_flags(values))) == TrainConfig(**values)


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'model = "resnet18"\nlr = 0.3\nmodel_ema = true\nmean = [0.1, 0.2, 0.3]\n'
    )
    config = read_config(tmp_path / "a.toml", given(["--lr", "0.5", "--no-model-ema"]))
    assert (config.lr, config.model_ema, config.mean) == (0.5, False, (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--batch-size", "0"], "'--batch-size': 0 is not in the range x>=1"),
        (["--hflip", "1.5"], "'--hflip': 1.5 is not in the range 0<=x<=1"),
        (["--lr", "fast"], "'--lr': 'fast' is not a valid number"),
        (["--lr", "0"], "'--lr': 0.0 is not in the range x>0"),
        (["--residual", "no"], "'--residual': 'no' is not one of"),
        (["--scale", "0.5"], "'--scale' requires 2 arguments"),
        (["--epochs", "many"], "'--epochs': 'many' is not a valid integer"),
        (["--epoch", "3"], "No such option.*--epoch"),
    ],
)
def test_a_value_out_of_bounds_is_a_usage_error(arguments: list[str], culprit: str) -> None:
    with pytest.raises(click.UsageError, match=culprit):
        given(arguments)


def test_help_says_what_each_key_is_and_its_default() -> None:
    @click.command()
    @config_flags
    def command(**overrides: Any) -> None: ...

    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    for name, field in TrainConfig.model_fields.items():
        assert str(field.description) in text.partition(f" --{name.replace('_', '-')} ")[2][:500]
    assert "[default: 128]" in text
    assert "[default: 0.08 1]" in text
    assert "[default: off]" in text
    assert "[required" in text


def test_a_command_may_have_some_of_the_keys() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @config_flags_for("workers", "mean")
    def command(**overrides: Any) -> None:
        seen.update(overrides)

    assert CliRunner().invoke(command, ["--mean", "0.5", "--mean", "0.25"]).exit_code == 0
    assert seen == {"workers": None, "mean": (0.5, 0.25)}
    assert "No such option" in CliRunner().invoke(command, ["--epochs", "3"]).output
    text = CliRunner().invoke(command, ["--help"]).output
    assert text.index("--workers") < text.index("--mean")


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help_imports_no_torch(name: str) -> None:
    code = (
        f"import sys; from dggraph.cli.{name} import command; command(['--help'],"
        " standalone_mode=False); print('heavy', sorted({'torch', 'torchvision', 'timm', 'numpy',"
        " 'networkx'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "heavy []"


def test_recipes_are_shipped() -> None:
    assert {file.stem for file in RECIPES} == {
        "coco_faster_rcnn",
        "fashion_mnist",
        "imagenet_mobilenet_v2",
        "imagenet_regnet_y_400mf",
        "imagenet_resnet50",
        "imagenet_resnext50",
    }


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_are_read_and_name_what_there_is(file: Path) -> None:
    config = read_config(file, {})
    assert config.model in model_names()
    assert file.read_text().startswith("# ")
    if file.stem.startswith(
        "imagenet"
    ):  # the references' linear rule: rate over global batch of 8 processes
        published = {
            "resnet50": 0.1 / 256,
            "resnext50_32x4d": 0.1 / 256,
            "mobilenet_v2": 0.045 / 256,
            "regnet_y_400mf": 0.4 / 1024,
        }
        assert config.lr / (8 * config.batch_size) == pytest.approx(published[config.model])


def test_a_recipe_with_a_wrong_key_would_be_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(RECIPES[0].read_text() + "\nbatchsize = 3\n")
    with pytest.raises(
        InputError, match=r"unknown key 'batchsize' in .*a\.toml: did you mean 'batch_size'"
    ):
        read_config(tmp_path / "a.toml", {})


def test_a_batch_splits_into_equal_parts() -> None:
    """Parts count alike, so they must be alike."""
    assert TrainConfig(model="a", batch_size=6, grad_accum_steps=3).grad_accum_steps == 3
    with pytest.raises(
        InputError,
        match=r"grad_accum_steps = 4: .*batch_size = 6 cannot be split into 4 equal parts",
    ):
        read_config(None, {"model": "a", "batch_size": 6, "grad_accum_steps": 4})


def test_the_help_has_every_key_once_in_a_section_of_its_own(capsys: Any) -> None:
    _, out, _ = run(capsys, "train", "--help")
    headings = re.findall(r"^(\w+):$", out, flags=re.MULTILINE)
    assert headings == ["Model", "Data", "Augmentation", "Routing", "Optimisation", "Options"]
    flags = re.findall(r"^  (--[a-z-]+)", out, flags=re.MULTILINE)
    wanted = {f"--{name.replace('_', '-')}" for name in TrainConfig.model_fields}
    assert len(flags) == len(set(flags))
    assert wanted | {"--device", "--json"} == set(flags)
    routing = out.split("Routing:")[1].split("Optimisation:")[0]
    for flag in ("--router", "--tune", "--threshold", "--budget"):
        assert flag in routing
    assert "None" not in out
    assert "[default: 0.1]" in out
