"""Results of finished runs, as a model card takes them."""

from pathlib import Path

import pytest
from toy_runs import keys

import dggraph
from dggraph.errors import InputError
from dggraph.training import read_results
from dggraph.training.loop import train

SHORT = {"epochs": 1, "budget": None, "model_ema": False, "checkpoint_steps": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    return [
        train(keys(place, seed=seed, experiment=f"seed{seed}", **SHORT)).folder for seed in (0, 1)
    ]


def test_seeds_of_one_recipe_become_one_card(folders: list[Path], tmp_path: Path) -> None:
    results = read_results(*folders)
    assert results.seeds == (0, 1)
    assert len(results.scores) == len(results.kept) == 2
    assert (results.num_training, results.num_validation) == (72, 40)
    assert results.dataset == "toy_data:make"
    assert "--model dggraph:resnet14_4" in results.command
    assert str(folders[0].parent) not in results.command
    net = dggraph.load(folders[0] / "archive")
    net.save_pretrained(tmp_path / "shared", results=results)
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "over 2 seeds" in card
    assert "trained by dggraph" in card.replace("\\", "")


def test_a_run_in_the_home_folder(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folders[0].parent))
    assert read_results(f"~/{folders[0].name}") == read_results(folders[0])


def test_paths_of_this_machine_stay_here(tmp_path: Path) -> None:
    config = keys(tmp_path, data_dir=tmp_path / "private" / "flowers", **SHORT)
    found = read_results(train(config).folder)
    assert "--data-dir flowers" in found.command
    assert "private" not in found.command


def test_other_recipes_and_unfinished_runs_are_refused(folders: list[Path], tmp_path: Path) -> None:
    other = train(keys(tmp_path, lr=0.01, **SHORT)).folder
    with pytest.raises(InputError, match="differ in lr, router_lr"):
        read_results(folders[0], other)
    (other / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="is not finished"):
        read_results(other)
    with pytest.raises(InputError, match=r"no config\.json"):
        read_results(tmp_path)
    with pytest.raises(InputError, match="no run to read"):
        read_results()
    (other / "config.json").write_text("[]")
    with pytest.raises(InputError, match="not a table"):
        read_results(other)
