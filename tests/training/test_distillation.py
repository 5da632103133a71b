"""Distillation: a trained static network's outputs are the labels; what is pinned stays; what is
held does not move.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kinds import WIDTH, Lifted
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toy_runs import contents, keys

import dggraph
from dggraph.errors import InputError
from dggraph.losses import divergence
from dggraph.network.gate_constraints import decide_blocks_, pin_open_, release_
from dggraph.training import loop
from dggraph.training.checkpoint import list_checkpoints, load_checkpoint
from dggraph.training.distillation import answered, find_fragile, teacher_of
from dggraph.training.loop import train

X = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def block(scale: float) -> Lifted:
    made = Lifted()
    nn.init.constant_(made.norm2.weight, scale)
    return made


class Trained(nn.Module):
    """Stands for a trained network: its third block says much, the others little."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.layers = nn.Sequential(block(0.1), block(0.2), block(3.0))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(20 * self.layers(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


def trained(num_classes: int = 4) -> nn.Module:
    torch.manual_seed(7)
    return Trained().eval()


def distilling(output: Path, **others: Any) -> Any:
    base: dict[str, Any] = {
        "model": "test_distillation:trained",
        "objective": "distill",
        "tune": "routers",
        "router": "stage",
    }
    base |= {
        "mixup": 0.0,
        "opt": "adamw",
        "lr": 0.02,
        "weight_decay": 0.0,
        "model_ema": False,
        "budget": 0.7,
        "budget_weight": 20.0,
    }
    return keys(output, **base | others)


def convert(**options: Any) -> Any:
    return dggraph.convert(trained(), torch.zeros(1, 3, 16, 16), **options)


def test_divergence_by_hand() -> None:
    """The divergence of (1/2, 1/2) from (1/4, 3/4): ln 2 - ln 3 / 2; and none from itself, whatever
    is added to logits.
    """
    even, uneven = torch.tensor([[2.0, 2.0]]), torch.tensor([[0.0, float(np.log(3))]])
    assert divergence(even, uneven).item() == pytest.approx(np.log(2) - np.log(3) / 2, rel=1e-6)
    assert divergence(uneven, uneven + 5).item() == pytest.approx(0, abs=1e-7)


def test_the_teachers_answers_are_the_labels() -> None:
    teacher = teacher_of(trained())
    labelled = answered(teacher, TensorDataset(X, torch.full((12,), -1)), batch_size=5, workers=0)
    assert [labelled[i][1] for i in range(12)] == teacher(X).argmax(1).tolist()
    assert torch.equal(labelled[3][0], X[3])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_blocks_that_cost_much_are_pinned() -> None:
    net = convert(router="stage")
    found = find_fragile(
        net, TensorDataset(X, torch.zeros(12)), 0.2, seed=0, batch_size=4, workers=0
    )
    assert found["pinned"] == ["layers_2"]
    assert found["num_images"] == 12
    costs = {block["node"]: block["divergence"] for block in found["blocks"]}
    assert costs["layers_2"] > 0.2 > max(costs["layers_0"], costs["layers_1"])


@pytest.mark.parametrize("router", ["stage", "node", "node(8)"])
def test_pinned_edges_stay_at_1_and_learn_nothing(router: str, tmp_path: Path) -> None:
    """Whatever pushes: the largest gradients that want every edge closed. An archive keeps them
    without knowing.
    """
    net = convert(router=router).train()
    pin_open_(net, ["layers_2"])
    optimiser = torch.optim.Adam(net.parameters(), lr=0.5)
    for _ in range(6):
        _, gates = net(X, return_gates=True)
        sum(weights.sum() for weights in gates.raw.values()).backward()  # type: ignore[union-attr]
        optimiser.step()
        optimiser.zero_grad()
    edges = net.graph.edges("layers")
    is_pinned = [edge.is_static and "layers_2" in (edge.source, edge.target) for edge in edges]
    weights = net(X, return_gates=True)[1].raw["layers"]
    assert sum(is_pinned) == 4
    assert bool((weights[:, is_pinned] == 1).all())
    assert float(weights.detach()[:, [not one for one in is_pinned]].min(1).values.max()) < 0.5
    assert "layers_2" in {
        node for path in dggraph.record(net.eval(), X).paths for node in path.live_nodes(net.graph)
    }
    dggraph.save(net, tmp_path / "a")
    again = dggraph.load(tmp_path / "a", model=trained())
    assert torch.equal(again.eval()(X), net(X))


def test_blocks_are_decided_about_as_one(tmp_path: Path) -> None:
    """A plain loop of x + w F(x) over the backbone's own blocks, left out where w is at or below
    the threshold; the same after an archive.
    """
    net, static = convert(router="stage").eval(), trained()
    decide_blocks_(net, ["layers_2"])
    router = net.lowered.get_submodule("dg_layers.router_0")
    optimiser = torch.optim.Adam(router.parameters(), lr=0.3)
    for step in range(
        1,
        8,
        # With the budget from the first step: without it gradients are rounding errors, which Adam
        # would blow up.
    ):
        _, gates = net(X, return_gates=True)
        (
            divergence(static(X), net(X)).mean() + dggraph.losses.budget(gates, 0.7) * (10 * step)
        ).backward()
        optimiser.step()
        optimiser.zero_grad()
    raw = net(X, return_gates=True)[1].raw["layers"]
    edges = net.graph.edges("layers")
    weight = {edge.source: raw[:, place] for place, edge in enumerate(edges)}
    for place, edge in enumerate(edges):
        assert torch.equal(raw[:, place], weight[edge.source]), "one weight a block"
    names = [node.name for node in net.graph.nodes("layers")]
    assert bool((weight["layers_2"] == 1).all() and (weight[names[0]] == 1).all())
    z, num_open = static.stem(X), 0
    for number in range(3):
        scale = weight[f"layers_{number}"] * (weight[f"layers_{number}"] > 0.5)
        num_open += int((scale > 0).sum())
        z = z + scale[:, None, None, None] * (static.layers[number](z) - z)
    assert 12 < num_open < 36, "some must be left out and some not, or this test says little"
    before = net(X)
    torch.testing.assert_close(before, static.head(20 * z.mean((2, 3))), rtol=0, atol=1e-4)
    release_(net)
    assert torch.equal(net(X), before)
    assert len(router.weight.unique(dim=0)) == 3, "two blocks, and the zero of all else"
    dggraph.save(net, tmp_path / "a")
    assert torch.equal(dggraph.load(tmp_path / "a", model=trained()).eval()(X), before)


def test_what_cannot_be_decided_about_as_one() -> None:
    with pytest.raises(InputError, match=r"too late to skip the block.*router=.stage."):
        decide_blocks_(convert(router="node"))
    with pytest.raises(InputError, match="no block is left to decide about"):
        decide_blocks_(convert(router="stage"), ["layers_0", "layers_1", "layers_2"])
    with pytest.raises(InputError, match="no block is left to decide about"):
        decide_blocks_(convert(router="stage", residual="keep"))


@pytest.mark.parametrize("router", ["stage", "node"])
def test_blocks_pinned_one_after_the_other_are_all_pinned(router: str) -> None:
    once, twice = convert(router=router), convert(router=router)
    pin_open_(once, ["layers_0", "layers_2"])
    pin_open_(twice, ["layers_0"])
    pin_open_(twice, ["layers_2"])
    for net in (once, twice):
        for name, parameter in net.named_parameters():
            if name.startswith("dg_"):
                torch.nn.init.constant_(parameter, -1.0)
    expected, found = (net(X, return_gates=True)[1].raw["layers"] for net in (once, twice))
    assert torch.equal(found, expected)
    assert bool((found == 1).any())
    assert not bool((found == 1).all())


def test_what_cannot_be_pinned() -> None:
    with pytest.raises(InputError, match="'layers_9' is not a block"):
        pin_open_(convert(), ["layers_9"])
    with pytest.raises(InputError, match="SigmoidGate"):
        pin_open_(convert(gate="sigmoid", init="scratch"), ["layers_1"])
    net = convert(router="stage")
    with torch.no_grad():
        net.lowered.get_parameter("dg_layers.router_0.bias").fill_(0.5)
    with pytest.raises(InputError, match="already trained"):
        pin_open_(net, ["layers_1"])


@pytest.mark.parametrize("tune", ["routers", "norms"])
def test_routers_learn_to_keep_the_budget_and_the_rest_stays(tmp_path: Path, tune: str) -> None:
    rows: list[Any] = []
    result = train(distilling(tmp_path, epochs=6, tune=tune, pin_divergence=0.2), rows.append)
    assert json.loads((result.folder / "sensitivity.json").read_text())["pinned"] == ["layers_2"]
    judged = [row for row in rows if "epoch" in row]
    assert judged[-1]["kept"] < 0.85
    assert judged[-1]["accuracy"] > 0.8
    net, static = dggraph.load(result.folder / "archive", model=trained()), trained()
    before, after = static.state_dict(), net.lowered.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    weights = {
        f"layers.{i}.norm{n}.{name}"
        for i in range(3)
        for n in (1, 2)
        for name in ("weight", "bias")
    }
    assert moved <= (weights if tune == "norms" else set())
    assert bool(moved) == (tune == "norms")
    assert all(parameter.requires_grad for parameter in net.parameters())
    labels = [row["accuracy"] for row in judged]
    with torch.no_grad():
        images = torch.stack([image for image, _ in dggraph_validation()])
        assert labels[-1] == pytest.approx(
            float((net.eval()(images).argmax(1) == static(images).argmax(1)).float().mean())
        )


def dggraph_validation() -> Any:
    import toy_data

    return toy_data.make(None)[1]


def test_an_interrupted_distillation_ends_as_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"epochs": 2, "pin_divergence": 0.2, "tune": "norms", "model_ema": True}
    whole = train(distilling(tmp_path / "whole", **config))
    real = loop.take_step

    def step(run: Any, *args: Any) -> Any:
        row = real(run, *args)
        if run.step == 11:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patched:
        patched.setattr(loop, "take_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(distilling(tmp_path / "parts", **config))
    parts = train(distilling(tmp_path / "parts", **config))
    assert contents(parts.folder) == contents(whole.folder)
    teacher_keys = [
        key
        for key in load_checkpoint(list_checkpoints(whole.folder / "checkpoints")[-1]).tensors[
            "model"
        ]
        if "teacher" in key
    ]
    assert not teacher_keys


def test_folders_of_images_without_classes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for part, number in (("train", 16), ("val", 5)):
        (tmp_path / "photos" / part / "deep").mkdir(parents=True)
        for index in range(number):
            Image.fromarray(draw.integers(0, 255, (20, 24, 3), np.uint8)).save(
                tmp_path / "photos" / part / "deep" / f"{index}.png"
            )
    result = train(
        distilling(
            tmp_path,
            dataset="imagefolder",
            data_dir=tmp_path / "photos",
            num_classes=None,
            epochs=1,
        )
    )
    assert result.evaluation is not None
    assert result.evaluation.num_images == 5
    assert result.step == 2
    assert dggraph.load(result.folder / "archive", model=trained()).labels is None


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"model": "resnet18"}, "would be random: set pretrained, give trained ones as checkpoint"),
        ({"router": "none"}, "objective = 'distill' means nothing"),
        ({"router": "none", "objective": "labels"}, "tune = 'routers' means nothing"),
        ({"smoothing": 0.1}, "smoothing is for labels"),
        ({"gate": "sigmoid", "init": "scratch", "pin_divergence": 1e-9}, "SigmoidGate"),
    ],
)
def test_keys_that_do_not_fit(tmp_path: Path, others: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(distilling(tmp_path, **others))
    assert not (tmp_path / "run").exists()
