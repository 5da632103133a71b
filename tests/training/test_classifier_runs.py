"""The folder of a run is a MODEL: finished or not, dynamic or static, with an average or held
blocks, it answers as what was trained.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from idx_files import write_mnist
from toy_data import make, plain_net
from toy_runs import keys

import dggraph
from dggraph.cli.main import main
from dggraph.errors import ArchiveError, InputError
from dggraph.network.network import DynamicNetwork
from dggraph.training import loop
from dggraph.training.classifier_runs import is_classifier_run, open_classifier
from dggraph.training.loop import train

X = torch.linspace(-1, 1, 3 * 3 * 16 * 16).reshape(3, 3, 16, 16)


def command(capsys: Any, *arguments: object) -> tuple[int, dict[str, Any], str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in (*arguments, "--json")])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), json.loads(captured.out), captured.err


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"model_ema": False},
        {"objective": "distill", "model": "toy_data:plain_net", "mixup": 0.0, "tune": "routers"},
    ],
)
def test_the_last_checkpoint_is_the_network(tmp_path: Path, others: dict[str, Any]) -> None:
    """Without its archive a finished run still answers as the archive does, to the bit."""
    folder = train(keys(tmp_path, epochs=1, **others)).folder
    own = others.get("model")
    archive = dggraph.load(folder / "archive", model=plain_net() if own else None)
    shutil.rmtree(folder / "archive")
    net, said = open_classifier(folder, own)
    assert "not finished: this is its network after step 9" in said
    assert torch.equal(net(X), archive(X))
    assert (net.labels, net.preprocess) == (
        archive.labels,
        archive.preprocess,
    )


@pytest.mark.parametrize("average", [False, True])
def test_held_blocks_stay_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: bool
) -> None:
    monkeypatch.setattr(
        "dggraph.training.preparing.find_fragile",
        lambda *_args, **_options: {"pinned": ["blocks_1"]},
    )
    decided = {
        "decide": "blocks",
        "router": "stage",
        "objective": "distill",
        "pin_divergence": 1.0,
        "mixup": 0.0,
        "tune": "routers",
    }
    folder = train(
        keys(tmp_path, epochs=1, model="test_classifier_runs:lifted", model_ema=average, **decided)
    ).folder
    archive = dggraph.load(folder / "archive", model=lifted())
    shutil.rmtree(folder / "archive")
    assert torch.equal(open_classifier(folder, "test_classifier_runs:lifted")[0](X), archive(X))


def lifted(num_classes: int = 4) -> torch.nn.Module:
    from small import Block, Net

    torch.manual_seed(1)
    model = Net(Block, depth=4)
    model.head[2] = torch.nn.Linear(8, num_classes)
    return model


def test_eval_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    real = loop.take_step

    def step(run: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *args)

    config = keys(tmp_path, epochs=1, model_ema=False)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        folder = train(config).folder
    code, document, _ = command(capsys, "eval", folder)
    assert code == 4
    assert "--dataset toy_data:make" in document["error"]["message"], (
        "code runs only where it is named"
    )
    code, document, err = command(capsys, "eval", folder, "--dataset", "toy_data:make")
    assert code == 0
    assert document["num_images"] == 40
    assert "not finished: this is its network after step 1" in err
    result = train(config)
    code, document, err = command(capsys, "eval", folder, "--dataset", "toy_data:make")
    assert code == 0
    assert result.evaluation is not None
    assert document["top1"] == result.evaluation.top1
    assert err == ""
    code, document, _ = command(
        capsys, "eval", folder, "--dataset", "toy_data:make", "--num-classes", 4
    )
    assert code == 2
    assert "--num-classes does not go with a run folder" in document["error"]["message"]
    code, document, _ = command(
        capsys, "eval", folder, "--dataset", "toy_data:make", "--budget", 0.8, "--save", folder
    )
    assert code == 4
    assert "is not an archive" in document["error"]["message"]
    assert command(capsys, "inspect", folder)[0] == 0


def test_the_domains_of_a_run_are_those_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_mnist(tmp_path)
    data = {"dataset": "diverse_fashion", "domains": "D1", "data_dir": tmp_path}
    own = {"num_classes": None, "input_size": 32, "epochs": 1}
    result = train(keys(tmp_path, model="dggraph:resnet8_4", **data, **own))
    assert result.evaluation is not None
    code, document, _ = command(capsys, "eval", result.folder)
    assert (code, document["num_images"]) == (0, 40)
    assert document["top1"] == result.evaluation.top1


def test_a_run_of_a_static_backbone(tmp_path: Path) -> None:
    result = train(keys(tmp_path, router="none", budget=None, epochs=1, model="toy_data:plain_net"))
    net, said = open_classifier(result.folder, "toy_data:plain_net")
    assert said == ""
    assert isinstance(net, DynamicNetwork)
    assert net.labels == ("a", "b", "c", "d")
    images = torch.stack([make(None)[1][place][0] for place in range(40)])
    labels = torch.tensor([make(None)[1][place][1] for place in range(40)])
    assert result.evaluation is not None
    assert int((net(images).argmax(1) == labels).sum()) == result.evaluation.top1


def test_what_is_no_network_yet(tmp_path: Path) -> None:
    assert not is_classifier_run(tmp_path)
    assert not is_classifier_run(tmp_path / "nowhere")
    folder = train(keys(tmp_path, epochs=1)).folder
    assert is_classifier_run(folder)
    assert not is_classifier_run(folder / "archive")
    with pytest.raises(InputError, match="leave --backbone out"):
        open_classifier(folder, "toy_data:plain_net")
    shutil.rmtree(folder / "archive")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ArchiveError, match="no checkpoint yet"):
        open_classifier(folder)
