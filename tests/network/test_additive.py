"""Additive aggregation: the plain sum of open edges, and gain times a normalised weighted one."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from random_nets import SIDE, Net, Tokens
from reference import randomise, randomise_routers
from routed import assert_all_learn, assert_executors_agree, run
from small import Net as Small
from small import X
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError, WiringError

CASES = [(kind, router) for kind in ("lifted", "tokens") for router in ("node", "stage", "content")]


@cache
def converted(kind: str, router: str) -> tuple[nn.Module, Any]:
    model = randomise(Tokens(4) if kind == "tokens" else Net(kind, 4), 3).double().eval()
    example = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    return model, dggraph.convert(model, example, router=router, aggregation="additive")


def build(kind: str, router: str, bias: float = 0.0) -> tuple[Any, Tensor]:
    net = copy.deepcopy(converted(kind, router)[1])
    randomise_routers(net, 1)
    with torch.no_grad():
        for name, parameter in net.lowered.named_parameters():
            if name.endswith(".gain"):
                parameter.fill_(0.7)
            elif name.startswith("dg_") and name.endswith(".bias"):
                parameter.mul_(0.3).add_(bias)
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    return net, torch.randn(8, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("kind", "router"), CASES)
def test_it_starts_as_the_backbone_and_every_parameter_learns(kind: str, router: str) -> None:
    model, net = converted(kind, router)
    net = copy.deepcopy(net)
    x = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    assert_all_learn(net, x, num_steps=2)


@pytest.mark.parametrize(("kind", "router"), CASES)
@pytest.mark.parametrize("bias", [0.0, -0.6, -50.0])
def test_executors_agree(kind: str, router: str, bias: float) -> None:
    net, x = build(kind, router, bias)
    gates, sparse_gates = assert_executors_agree(net, x)
    for stage, weights in gates.weights.items():
        assert torch.allclose(weights, sparse_gates.weights[stage], atol=1e-12)
    if bias == -0.6:
        assert (torch.cat(list(gates.weights.values()), 1) == 0).any()


def test_it_is_a_plain_loop() -> None:
    model = randomise(Small(), 5).double().eval()
    net = dggraph.convert(model, X[:1].double(), router="stage", aggregation="additive")
    randomise_routers(net, 6)
    (stage,) = net.graph.stages
    with torch.no_grad():
        outputs, gates = net(X.double(), return_gates=True)
    adjacency = gates.adjacency(stage)
    routing, last = net.lowered.get_submodule(f"dg_{stage}"), len(model.blocks) + 1

    def normed(features: Tensor) -> Tensor:
        mean = sum(channel.square() for channel in features[0]) / features.shape[1]
        return features / (mean + 1e-6).sqrt()

    for number, image in enumerate(X.double().split(1)):
        with torch.no_grad():
            features = [model.stem(image)]
            for target in range(1, last + 1):
                weights = adjacency[number, :target, target].tolist()
                opened = [source for source, weight in enumerate(weights) if weight]
                if not opened:
                    features.append(torch.full_like(features[0], torch.nan))
                    continue
                own = sum((features[one] for one in opened), torch.zeros(()))
                added = sum((weights[one] * normed(features[one]) for one in opened), 0)
                total = own + routing.get_submodule(f"sum_{target}").gain * normed(added)
                if target < last:
                    features.append(model.blocks[target - 1](total) - total)
            assert torch.allclose(model.head(total), outputs[number], atol=1e-12)


def test_an_archive_brings_it_back(tmp_path: Path) -> None:
    model, _ = converted("lifted", "node")
    net, x = build("lifted", "node")
    dggraph.save(net, tmp_path / "archive")
    again = dggraph.load(tmp_path / "archive", model=copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


@pytest.mark.parametrize("router", ["node", "stage"])
def test_compilers_and_exporters_see_the_same_network(router: str) -> None:
    net, x = build("lifted", router)
    with torch.no_grad():
        expected, _ = run(net, x, "dense")
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
        assert torch.allclose(compiled(x), expected, atol=1e-12)
        assert torch.allclose(torch.export.export(net, (x,)).module()(x), expected, atol=1e-12)
    torch._dynamo.reset()


def test_prepared_networks_agree() -> None:
    net, x = build("lifted", "stage")
    fast = dggraph.optimize_for_inference(net)
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(fast(x), expected, atol=1e-9 * float(expected.abs().max()))


def test_it_needs_lifted_residuals_and_one_weight_an_edge() -> None:
    example = torch.zeros(1, 3, SIDE, SIDE)
    with pytest.raises(WiringError, match="lifted"):
        dggraph.convert(Net("kept", 3).eval(), example, aggregation="additive")
    with pytest.raises(InputError, match="one weight an edge"):
        dggraph.convert(
            Net("lifted", 3).eval(), example, aggregation="additive", granularity="channel"
        )
