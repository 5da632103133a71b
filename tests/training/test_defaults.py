"""Defaults that depend on other keys, and runs that began with the defaults of before."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from toy_runs import contents, keys

import dggraph
from dggraph.errors import CheckpointError, InputError
from dggraph.training import TrainConfig, loop
from dggraph.training.loop import train
from dggraph.training.runs import as_started, run_folder


@pytest.mark.parametrize(
    ("given", "threshold", "rate"),
    [
        ({}, 0.0, 0.02),
        ({"budget": 0.8}, 0.5, 0.02),
        ({"threshold": 0.3}, 0.3, 0.02),
        ({"threshold": 0.0, "budget": 0.8}, 0.0, 0.02),
        ({"router_lr": 0.3}, 0.0, 0.3),
        ({"tune": "routers"}, 0.0, 0.2),
        ({"tune": "norms"}, 0.0, 0.2),
    ],
)
def test_nothing_closes_unless_asked_and_routers_learn_slowly(
    given: dict[str, Any], threshold: float, rate: float, tmp_path: Path
) -> None:
    config = TrainConfig(model="resnet18", lr=0.2, output=tmp_path, **given)
    assert config.final_threshold == threshold
    assert config.router_rate == pytest.approx(rate)
    started = as_started(config)
    assert (started.threshold, started.router_lr) == (threshold, config.router_rate)
    assert as_started(started) == started


def test_by_default_every_static_edge_stays_open(tmp_path: Path) -> None:
    result = train(keys(tmp_path, budget=None, lr=0.3, epochs=1))
    net = dggraph.load(result.folder / "archive")
    assert {float(value) for name, value in net.lowered.named_buffers() if "threshold" in name} == {
        0
    }
    stored = json.loads((result.folder / "config.json").read_text())
    assert (stored["threshold"], stored["router_lr"]) == (0.0, pytest.approx(0.03))


def test_a_gate_that_cannot_reach_the_threshold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"less than 0\.1, so at threshold=0\.5 no edge"):
        train(keys(tmp_path, gate="scaled"))


@pytest.mark.parametrize("experiment", ["run", ""])
def test_an_old_run_continues_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    """Edges closed at .5 and routers learned at lr; an unnamed folder was named after these."""
    unset: dict[str, Any] = {"budget": None, "experiment": experiment}
    whole = train(keys(tmp_path / "whole", **unset | {"threshold": 0.5, "router_lr": 0.05}))
    real = loop.take_step

    def stop(run: Any, *args: Any) -> Any:
        row = real(run, *args)
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with monkeypatch.context() as before:
        before.setattr(loop, "take_step", stop)
        before.setattr(loop, "as_started", lambda config: config)
        before.setattr(TrainConfig, "router_rate", property(lambda config: config.lr))
        begun = train(keys(tmp_path / "parts", threshold=0.5, **unset))
    assert not begun.is_finished
    assert json.loads((begun.folder / "config.json").read_text())["router_lr"] is None
    ended = train(keys(tmp_path / "parts", **unset))
    assert ended.is_finished
    assert ended.folder == begun.folder
    names = ("metrics.jsonl", "checkpoints/00000018/model.safetensors")
    assert contents(ended.folder, names) == contents(whole.folder, names)
    assert train(keys(tmp_path / "parts", threshold=0.5, **unset)).folder == begun.folder


def test_other_values_than_those_it_began_with_are_named(tmp_path: Path) -> None:
    train(keys(tmp_path, epochs=1, budget=None))
    with pytest.raises(CheckpointError, match="a run with other router_lr, threshold"):
        train(keys(tmp_path, epochs=1, budget=None, threshold=0.5, router_lr=0.05))


def test_new_runs_of_their_own_folder(tmp_path: Path) -> None:
    """An unset key is named by its value, so that a run finds its folder either way."""
    unset = keys(tmp_path, experiment="", budget=None)
    given = keys(tmp_path, experiment="", budget=None, threshold=0.0, router_lr=unset.router_rate)
    assert run_folder(as_started(unset)) == run_folder(as_started(given)) == run_folder(given)


def test_competing_edges_cool_from_30_to_the_final_temperature(tmp_path: Path) -> None:
    """Geometrically: the last of 18 steps is one eighteenth before the end."""
    result = train(keys(tmp_path, router="stage", gate="softmax", budget=None))
    net = dggraph.load(result.folder / "archive")
    found = [value for name, value in net.lowered.named_buffers() if name.endswith(".temperature")]
    assert found
    assert [float(value) for value in found] == pytest.approx([30 ** (1 / 18)] * len(found))
