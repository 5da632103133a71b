"""Plans of comparisons: which runs there are, with which keys, and what is refused by name."""

import shlex
from pathlib import Path

import click
import pytest
from pages import ROOT, read_blocks
from toy_comparison import write_comparison

from dggraph.cli.flags import config_flags
from dggraph.comparing.plan import digest_of, read_plan, remarks_on
from dggraph.errors import InputError
from dggraph.training.commands import command_of
from dggraph.training.config import TrainConfig, read_config

TABLES = """
[families.a]
model = "dggraph:resnet14_4"
[families.b]
model = "dggraph:resnet20_4"
lr = 0.2
[data.x]
data_dir = "x"
[data.y]
data_dir = "y"
[methods.static]
router = "none"
[methods.node]
router_lr = 0.005
budgets = [0.8]
[methods.node.families]
b.router = "stage"
"""


def test_methods_by_seeds_by_families_by_data_sets(tmp_path: Path) -> None:
    plan = read_plan(write_comparison(tmp_path, TABLES, seeds="[3, 5]"))
    names = [run.names for run in plan.runs]
    assert len(names) == len(set(names)) == 2 * 2 * 2 * 3
    assert names[:4] == [
        ("static", "a", "x", 3, None),
        ("node", "a", "x", 3, None),
        ("node", "a", "x", 3, 0.8),
        ("static", "a", "x", 5, None),
    ]
    cells = [run.names[1:3] for run in plan.runs]
    assert cells == sorted(cells)  # One family on one data set is finished before the next begins.
    by_name = {run.names: run for run in plan.runs}
    node = by_name["node", "b", "y", 5, 0.8].config
    assert (node.model, node.lr, node.router, node.router_lr) == (
        "dggraph:resnet20_4",
        0.2,
        "stage",
        0.005,
    )
    assert (str(node.data_dir), node.seed, node.budget, node.epochs) == ("y", 5, 0.8, 2)
    assert by_name["node", "a", "y", 5, None].config.router == "node"
    assert by_name["node", "a", "y", 5, None].baseline_model == "dggraph:resnet14_4"
    assert len({run.digest for run in plan.runs}) == len({run.folder for run in plan.runs}) == 24
    assert plan.rows_file == tmp_path / "output" / "rows.jsonl"


def test_budgets_at_the_top_are_for_methods_with_a_router(tmp_path: Path) -> None:
    text = "[methods.static]\nrouter = 'none'\n[methods.node]\n[methods.stage]\nbudgets = []\n"
    file = write_comparison(tmp_path, text, seeds="[0]\nbudgets = [0.7]")
    assert [(run.method, run.budget) for run in read_plan(file).runs] == [
        ("static", None),
        ("node", None),
        ("node", 0.7),
        ("stage", None),
    ]


def test_a_digest_ignores_keys_that_a_later_version_adds_with_their_default() -> None:
    config = TrainConfig(model="resnet18", lr=0.3)
    keys = config.fingerprint()
    older = {key: value for key, value in keys.items() if key not in ("recompute", "cutmix")}
    assert digest_of(older) == digest_of(keys)
    assert digest_of(keys | {"lr": 0.4}) != digest_of(keys)
    assert digest_of({key: value for key, value in keys.items() if key != "lr"}) != digest_of(keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"model": "resnet18"},
        {"channels_last": True, "model_ema": True, "hflip": 0.0, "randaugment": (2, 9)},
        {"mean": (0.3, 0.3, 0.3), "scale": (0.5, 1.0), "data_dir": "a folder/it's", "budget": 0.7},
        {"wiring": "window(2)+entry", "decay_milestones": (3, 5), "domains": "D4", "seed": 7},
    ],
)
def test_the_command_of_a_run_gives_its_keys(keys: dict[str, object]) -> None:
    config = read_config(None, {"model": "resnet18"} | keys)
    found: dict[str, object] = {}

    @click.command()
    @config_flags
    def train(**overrides: object) -> None:
        found.update(overrides)

    words = shlex.split(command_of(config.model_copy(update={"experiment": "x"})))
    assert words[:2] == ["dggraph", "train"]
    train.main(words[2:], standalone_mode=False)
    assert read_config(None, found) == config


STATIC = "[methods.static]\nrouter = 'none'\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (STATIC + "lrr = 1\n", r"toml, method 'static': unknown key 'lrr'"),
        (STATIC + "lr = -1\n", "lr = -1"),
        (STATIC + "seed = 1\n", r"seed in \[methods.static\]"),
        ("controls = ['wider']\n" + STATIC, "controls"),
        ("[methods.node]\n", "baseline in .* names 'static', which is not a method"),
        (STATIC + "[methods.static.families]\nc.lr = 1\n", "names 'c', which is not a family"),
        ("[methods.'a b']\n[methods.a_b]\n[methods.static]\n", "would share the folder a_b-seed0"),
        ("[method.static]\n", "unknown key 'method'.*did you mean 'methods'"),
        (STATIC + "[methods.d]\nobjective = 'distill'\n", "method 'd'.*accuracy on labels"),
        (STATIC + "[methods.d]\ntask = 'detection'\n", "method 'd'.*accuracy on labels"),
        ("", "no methods"),
        ("[families.c]\nlrr = 1\n" + STATIC, r"method 'static', family 'c': unknown key 'lrr'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    if text.startswith("controls"):
        line, _, text = text.partition("\n")
        file = write_comparison(tmp_path, text, seeds=f"[0]\n{line}")
    else:
        file = write_comparison(tmp_path, text)
    with pytest.raises(InputError, match=told):
        read_plan(file)


def test_a_budget_that_nothing_can_meet_is_remarked_once_for_each_method(tmp_path: Path) -> None:
    text = STATIC + "[methods.open]\nbudgets = [0.8]\n"  # by a recipe whose threshold is 0
    text += "[methods.closing]\nthreshold = 0.5\nbudgets = [0.8]\n"
    (remark,) = remarks_on(read_plan(write_comparison(tmp_path, text, seeds="[0, 1]")))
    assert remark.startswith("method 'open': threshold is 0")
    assert "budget of 0.8" in remark


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        ("3", r"seeds = 3 in .* is not a list; write seeds = \[\.\.\.\]"),
        ("[]", "seeds in .* has no valid value; give at least one"),
        ("[18446744073709551616]", "seed = .*: it must be at most 18446744073709551615"),
        ("[0.5]", r"seeds\.0 = 0\.5 in .*valid integer"),
    ],
)
def test_seeds_are_a_list_of_whole_numbers(tmp_path: Path, seeds: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_plan(write_comparison(tmp_path, STATIC, seeds=seeds))


def test_a_seed_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="comes twice"):
        read_plan(write_comparison(tmp_path, STATIC, seeds="[1, 1]"))


def test_shipped_comparisons_are_valid(tmp_path: Path) -> None:
    files = sorted((ROOT / "benchmarks" / "compare").glob("*.toml"))
    assert files
    (example,) = (block for block in read_blocks("docs/compare.md") if block.language == "toml")
    (tmp_path / "comparison.toml").write_text(example.code)
    for file in (*files, tmp_path / "comparison.toml"):
        plan = read_plan(file)
        assert plan.comparison.controls
        factor = 10 if file.stem == "diverse_gpu" else 1
        assert {run.baseline_model for run in plan.runs} <= {
            f"dggraph:resnet20_{8 * factor}",
            f"dggraph:mobilenet4_{8 * factor}",
        }
        assert all(run.config.epoch_steps == 3000 * factor for run in plan.runs)


def test_the_comparison_for_a_gpu_is_the_same_but_larger() -> None:
    """Ten times the steps and widths; its larger layers take the usual squeeze-excitation."""
    folder = ROOT / "benchmarks" / "compare"
    plans = [read_plan(folder / f"{name}.toml") for name in ("diverse", "diverse_gpu")]
    for small, large in zip(*(plan.runs for plan in plans), strict=True):
        assert small.names == large.names
        name, width = small.config.model.rsplit("_", 1)
        changed = {
            "model": f"{name}_{10 * int(width)}",
            "epoch_steps": 30_000,
            "method": small.config.method.replace("(reduction=4)", ""),
        }
        keys = small.config.fingerprint() | changed
        assert large.config.fingerprint() == {
            key: value for key, value in keys.items() if key in large.config.fingerprint()
        }


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("seeds = [")
    for name, told in (("bad.toml", "is not TOML"), ("missing.toml", "cannot read")):
        with pytest.raises(InputError, match=told):
            read_plan(tmp_path / name)
