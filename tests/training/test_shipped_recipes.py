"""The shipped recipes for ImageNet and COCO: routing is spelled out, and the static twin,
`--router none`, differs in nothing else.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dggraph.baselines.network import BaselineNetwork
from dggraph.network.network import dynamic_part
from dggraph.training.config import RECIPES, TrainConfig, read_config
from dggraph.training.optimisers import build_optimiser
from dggraph.training.preparing import Prepared, prepare

PUBLISHED = ("imagenet_resnet50", "imagenet_mobilenet_v2", "imagenet_resnext50",
             "imagenet_regnet_y_400mf", "coco_faster_rcnn")  # fmt: skip
FAMILIES = PUBLISHED[:4]
ROUTING = ("wiring", "router", "router_lr", "gate", "granularity", "init", "threshold")
SMALL: dict[str, Any] = {"dataset": "toy_data:make", "num_classes": 4, "input_size": 16}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "paper.md"


def recipe(name: str, **others: Any) -> TrainConfig:
    return read_config(Path(name), others)


def decays(prepared: Prepared, config: TrainConfig) -> dict[str, tuple[float, float]]:
    """Weight decay and rate of each parameter."""
    names = {id(parameter): name for name, parameter in prepared.model.named_parameters()}
    return {
        names[id(parameter)]: (group["weight_decay"], group["lr"])
        for group in build_optimiser(config, prepared.model).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_names_its_routing(name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text("utf-8")
    for key in ROUTING:
        assert re.search(rf"^{key} = ", text, flags=re.MULTILINE), key
    assert re.search(r"^(# budget: none|budget = )", text, flags=re.MULTILINE)
    assert "--router none" in text
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_closes_unasked_and_routers_learn_slowly(name: str) -> None:
    config = recipe(name)
    assert (config.final_threshold, config.budget, config.init) == (0, None, "preserve")
    assert config.router_rate == pytest.approx(0.1 * config.lr)
    saving = recipe(name, threshold=0.5, budget=0.8)
    assert (saving.final_threshold, saving.threshold_warmup) == (0.5, 0.5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_twin_has_all_other_keys(name: str) -> None:
    dynamic, twin = (one.model_dump() for one in (recipe(name), recipe(name, router="none")))
    assert {key for key, value in dynamic.items() if twin[key] != value} == {"router"}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_twin_starts_from_the_same_weights_and_learns_at_the_same_rates(name: str) -> None:
    config, static = recipe(name, **SMALL), recipe(name, **SMALL, router="none")
    ours, twin = prepare(config), prepare(static)
    net = dynamic_part(ours.model)
    assert net is not None
    assert dynamic_part(twin.model) is None
    routed = ours.model.state_dict()
    weights = twin.model.state_dict()
    assert list(weights) == [key for key in routed if "dg_" not in key]
    assert all(torch.equal(routed[key], value) for key, value in weights.items())
    of_ours, of_twin = decays(ours, config), decays(twin, static)
    assert of_twin == {key: value for key, value in of_ours.items() if "dg_" not in key}
    routers = [value for key, value in of_ours.items() if "dg_" in key]
    assert routers == [(0.0, pytest.approx(0.1 * config.lr))] * len(routers)
    assert routers
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(net.eval()(x), twin.model.eval()(x))


def test_without_its_routing_a_recipe_trains_a_baseline(tmp_path: Path) -> None:
    text = (RECIPES / "imagenet_regnet_y_400mf.toml").read_text("utf-8")
    file = tmp_path / "se.toml"
    file.write_text(text.partition("# Routing")[0] + 'method = "squeeze_excitation"\n')
    assert isinstance(prepare(read_config(file, SMALL)).model, BaselineNetwork)


@pytest.mark.skipif(not PAGE.exists(), reason="tests of an installed package go without docs")
def test_the_page_computes_hours_from_the_recipes() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| (\d+) \|$",
        PAGE.read_text("utf-8"),
        flags=re.MULTILINE,
    )
    assert tuple(row[0] for row in rows) == FAMILIES
    for name, epochs, rate, static, overhead, dynamic in rows:
        hours = 1_281_167 * recipe(name).epochs / int(rate) / 3600
        assert int(epochs) == recipe(name).epochs
        assert int(static) == round(hours)
        assert int(dynamic) == round(hours * float(overhead))


@pytest.mark.skipif(not PAGE.exists(), reason="tests of an installed package go without docs")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_has_the_command_of_each_recipe_and_of_its_twin(name: str) -> None:
    text = PAGE.read_text("utf-8").replace("\\\n", " ")
    found = re.findall(rf"^torchrun .* {name} .*$", text, flags=re.MULTILINE)
    twins = [line for line in found if line.endswith("--router none")]
    assert len(twins) == len(found) / 2 == (4 if name == "coco_faster_rcnn" else 1)
    pairs = {" ".join(line.removesuffix("--router none").split()) for line in found}
    assert len(pairs) == len(twins)
