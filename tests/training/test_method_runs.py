"""Runs with a method: they resume, end with an archive, and are read back by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from toy_data import Toy
from toy_runs import contents, keys, stop_after

import dggraph
from dggraph.baselines import BaselineNetwork
from dggraph.errors import InputError
from dggraph.training.classifier_runs import open_classifier
from dggraph.training.config import TrainConfig
from dggraph.training.loop import train
from dggraph.training.runs import run_folder

METHOD = {"method": "squeeze_excitation(reduction=2)", "budget": None, "threshold": None}


def test_a_run_that_was_stopped_ends_as_the_other_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(keys(tmp_path / "whole", **METHOD))
    stop_after(monkeypatch, 4, 13)
    config = keys(tmp_path / "parts", **METHOD)
    assert not train(config).is_finished
    unfinished, remark = open_classifier(tmp_path / "parts/run")
    assert isinstance(unfinished, BaselineNetwork)
    assert "after step 4" in remark
    while not (result := train(config)).is_finished:
        pass
    assert contents(result.folder) == contents(whole.folder)

    net = dggraph.load(result.folder / "archive")
    assert (net.method, net.options, net.labels) == (
        "squeeze_excitation",
        {"reduction": 2},
        ("a", "b", "c", "d"),
    )
    assert net.weights_origin == "trained by dggraph"
    toy = Toy(40, False, 1)
    with torch.no_grad():
        top1 = int((net(toy.images).argmax(1) == toy.labels).sum())
    for model in (result.folder, result.folder / "archive"):
        code, out, err = run(capsys, "eval", str(model), "--dataset", "toy_data:make", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert (found["top1"], found["weights_origin"]) == (top1, "trained by dggraph")
        assert "kept" not in found


def test_what_asks_for_paths_says_that_there_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = dggraph.baselines.squeeze_excitation("dggraph:resnet14_4")
    dggraph.save(net, tmp_path / "archive")
    for arguments in (
        ["bench"],
        ["inspect"],
        ["eval", "--dataset", "toy_data:make", "--budget", "0.8"],
        ["eval", "--dataset", "toy_data:make", "--sensitivity"],
    ):
        verb, *flags = arguments
        code, _, err = run(capsys, verb, str(tmp_path / "archive"), *flags)
        assert code == 4, arguments
        assert "method 'squeeze_excitation', which has no graph and no paths" in err


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"budget": 0.8}, "budget = 0.8 is for the dynamic graph"),
        ({"wiring": "window(2)"}, "wiring = 'window.2.' is for the dynamic graph"),
        ({"granularity": "channel"}, "granularity = 'channel' is for the dynamic graph"),
        ({"method": "squeeze"}, "method='squeeze' is not one of dynamic_graph, "),
        ({"parallel": "fsdp"}, "not tested on sharded weights"),
    ],
)
def test_keys_of_the_dynamic_graph_are_refused(
    tmp_path: Path, others: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(keys(tmp_path, **METHOD | others))


def test_folders_of_runs_from_before_the_key_are_found_again() -> None:
    config = TrainConfig(model="dggraph:resnet14_4")
    assert "method" not in config.fingerprint()
    assert "method" in config.model_copy(update=METHOD).fingerprint()
    assert run_folder(config) != run_folder(config.model_copy(update=METHOD))
