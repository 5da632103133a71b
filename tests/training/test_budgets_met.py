"""The weight of a budget adapts until the budget is met; where it is missed, everything says so."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run as run_command
from toy_runs import TOY, contents, keys, stop_after

from dggraph.training import TrainConfig
from dggraph.training.budget_multiplier import (
    HIGHEST,
    LOWEST,
    SHARPNESS,
    SPEED,
    STIFFNESS,
    adapt_,
    press,
)
from dggraph.training.budget_verdict import judge_budget
from dggraph.training.loop import train
from dggraph.training.runs import as_started, run_folder
from dggraph.training.schedules import target_at

SHORT: dict[str, Any] = {"epochs": 3, "mixup": 0.0, "model_ema": False}


def test_the_pull_grows_with_the_excess_and_turns_below_the_target() -> None:
    excess = torch.tensor([0.2, 0.0, -1 / SHARPNESS, -0.2], dtype=torch.float64).requires_grad_()
    multiplier = torch.tensor(3.0, dtype=torch.float64)
    press(excess, multiplier).sum().backward()
    assert excess.grad is not None
    expected = [3 * (1 + 0.2 * SHARPNESS), 3, 0, 3 * (1 - 0.2 * SHARPNESS)]
    assert excess.grad.tolist() == pytest.approx(expected)


def test_a_network_below_its_budget_is_pressed_up_even_by_the_lowest_multiplier() -> None:
    excess = torch.tensor(-0.1, dtype=torch.float64, requires_grad=True)
    press(excess, torch.tensor(LOWEST, dtype=torch.float64)).backward()
    assert excess.grad is not None
    assert float(excess.grad) == pytest.approx(LOWEST - 0.1 * STIFFNESS)
    assert excess.grad < 0


def test_the_multiplier_follows_the_excess_within_bounds() -> None:
    multiplier = torch.tensor(1.0, dtype=torch.float64)
    adapt_(multiplier, torch.tensor(0.1, dtype=torch.float64), 100)
    assert float(multiplier) == pytest.approx(math.exp(SPEED * 0.1 / 100))
    adapt_(multiplier, torch.tensor(-0.1, dtype=torch.float64), 100)
    assert float(multiplier) == pytest.approx(1)
    for excess, bound in ((1.0, HIGHEST), (-1.0, LOWEST)):
        for _ in range(20):
            adapt_(multiplier, torch.tensor(excess, dtype=torch.float64), 100)
        assert float(multiplier) == bound


def test_the_target_falls_as_the_threshold_rises() -> None:
    assert [target_at(done, 0.6, 0.5) for done in (0, 0.25, 0.5, 1)] == pytest.approx(
        [1, 0.8, 0.6, 0.6]
    )
    assert target_at(0, 0.6, 0) == 0.6


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("budget", [0.8, 0.6])
def test_a_short_run_meets_its_budget(tmp_path: Path, router: str, budget: float) -> None:
    """Twenty-seven steps, in which a fixed weight of 1 closes nothing."""
    result = train(keys(tmp_path, router=router, budget=budget, **SHORT))
    assert result.budget is not None
    assert result.budget.is_met
    assert result.budget.kept <= budget + 0.02
    page = (result.folder / "summary.html").read_text()
    assert '<p class="fine">Finished: 3 of 3 epochs' in page
    assert "Budget met: " in page
    assert "missed" not in page


def test_a_missed_budget_is_told_by_the_page_and_the_result(tmp_path: Path) -> None:
    rows: list[Any] = []
    result = train(keys(tmp_path, budget_weight=1.0, threshold=0.0, **SHORT), rows.append)
    verdict = result.budget
    assert verdict is not None
    assert not verdict.is_met
    assert verdict.kept == pytest.approx(1.01, abs=0.01)
    for part in (
        f"Budget missed: {verdict.kept:.3f} of the static network's MACs on the validation set, ",
        "0.8 was asked for",
        "leave threshold out, for 0.5",
        "leave budget_weight out, now 1,",
        "router_lr is 0.005",
        "epochs is 3",
        "dggraph eval RUN --budget 0.8 --save FOLDER",
    ):
        assert part in verdict.message
    assert [row["note"] for row in rows if "threshold is 0" in row.get("note", "")]
    page = (result.folder / "summary.html").read_text()
    assert '<p class="warning">Finished, but the budget was missed: 3 of 3 epochs' in page
    assert '<p class="fine">' not in page
    assert "budget 80.0 %, missed" in page.replace("\N{NO-BREAK SPACE}", " ")
    again = train(keys(tmp_path, budget_weight=1.0, threshold=0.0, **SHORT))
    assert again.budget == verdict


def test_the_command_says_it_and_json_holds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(TOY + 'batch_size = 8\nbudget = 0.8\nbudget_weight = 0.1\nexperiment = "run"\n')
    flags = ("train", file, "--output", tmp_path)
    code, out, _ = run_command(capsys, *map(str, flags))
    assert code == 0
    assert out.startswith("Budget missed: ")
    code, out, _ = run_command(capsys, *map(str, flags), "--json")
    assert code == 0
    assert json.loads(out)["budget"].keys() == {"target", "kept", "is_met", "message"}
    assert json.loads(out)["budget"]["is_met"] is False


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        ({"budget": None}, [{"epoch": 2, "kept": 1.0}]),
        ({}, []),
        ({}, [{"epoch": 1, "kept": 1.0}]),
        ({}, [{"epoch": 2}]),
    ],
    ids=["no budget", "not begun", "not finished", "static"],
)
def test_nothing_is_said_where_there_is_nothing_to_say(
    tmp_path: Path, given: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    assert judge_budget(keys(tmp_path, **given), rows) is None


def test_an_average_that_lags_behind_is_named(tmp_path: Path) -> None:
    rows = [{"step": 18, "loss": 1.0, "kept": 0.75}, {"step": 18, "epoch": 2, "kept": 0.95}]
    verdict = judge_budget(keys(tmp_path), rows)
    assert verdict is not None
    assert "lower model_ema_decay, now 0.9" in verdict.message
    assert "keep 0.750" in verdict.message


def test_a_run_with_an_adapting_weight_resumes_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(keys(tmp_path / "whole"))
    stops = stop_after(monkeypatch, 5, 13)
    while not (result := train(keys(tmp_path / "parts"))).is_finished:
        pass
    assert not stops
    assert contents(result.folder) == contents(whole.folder)
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    multipliers = [row["budget_multiplier"] for row in rows if "loss" in row]
    assert multipliers[0] == LOWEST
    assert len(set(multipliers)) > 9


@pytest.mark.parametrize("experiment", ["run", ""])
def test_a_run_that_began_with_a_weight_of_one_goes_on_with_it(
    tmp_path: Path, experiment: str
) -> None:
    """As every run with a budget did, before the weight adapted."""
    former = keys(tmp_path, budget_weight=1.0, experiment=experiment)
    begun = train(former)
    now = keys(tmp_path, experiment=experiment)
    assert as_started(now).budget_weight == 1
    assert run_folder(as_started(now)) == begun.folder
    assert train(now).folder == begun.folder


def test_without_a_budget_folders_are_named_as_before() -> None:
    config = TrainConfig(model="resnet18")
    assert config.fingerprint()["budget_weight"] == 1
    assert run_folder(config) == run_folder(config.model_copy(update={"budget_weight": 1.0}))
