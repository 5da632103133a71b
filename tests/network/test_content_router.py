"""Routers by content: queries of the newest feature, keys of its sources."""

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
from dggraph.errors import InputError
from dggraph.network.gate_contexts import pinned_gates

KINDS = ("kept", "lifted", "tokens", "concat", "adapter")


@cache
def converted(kind: str) -> tuple[nn.Module, Any]:
    model = randomise(Tokens(4) if kind == "tokens" else Net(kind, 4), 3).double().eval()
    example = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    return model, dggraph.convert(model, example, router="content(4)")


def build(kind: str, bias: float = 0.0) -> tuple[Any, Tensor]:
    net = copy.deepcopy(converted(kind)[1])
    randomise_routers(net, 1)
    with torch.no_grad():
        for name, parameter in net.lowered.named_parameters():
            if name.startswith("dg_") and name.endswith(".bias"):
                parameter.mul_(0.3).add_(bias)
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    return net, torch.randn(8, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_backbone_and_every_parameter_learns(kind: str) -> None:
    model, net = converted(kind)
    net = copy.deepcopy(net)
    x = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    assert_all_learn(net, x, num_steps=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [0.0, -0.5, -50.0])
def test_executors_agree(kind: str, bias: float) -> None:
    net, x = build(kind, bias)
    gates, sparse_gates = assert_executors_agree(net, x)
    for stage, weights in gates.weights.items():
        assert torch.allclose(weights, sparse_gates.weights[stage], atol=1e-12)
    if bias == -0.5:
        weights = torch.cat(list(gates.weights.values()), 1)
        assert (weights == 0).any()
        assert len(torch.unique(weights != 0, dim=0)) > 1 or kind == "adapter"


def test_it_is_a_plain_loop() -> None:
    model = randomise(Small(), 5).double().eval()
    net = dggraph.convert(model, X[:1].double(), router="content(4)")
    randomise_routers(net, 6)
    with torch.no_grad():
        outputs, gates = net(X.double(), return_gates=True)
    (stage,) = net.graph.stages
    routing, last = net.lowered.get_submodule(f"dg_{stage}"), len(model.blocks) + 1
    for number, image in enumerate(X.double().split(1)):
        with torch.no_grad():
            features, keys, asked = [model.stem(image)], [], []
            for target in range(1, last + 1):
                router, newest = routing.router(target - 1), features[target - 1]
                if newest is None:
                    keys.append(torch.zeros(4, dtype=torch.float64))
                    asked.append((torch.zeros(4, dtype=torch.float64), torch.zeros(target)))
                else:
                    pooled = newest[0].mean((1, 2))
                    key = router.key.weight @ pooled
                    keys.append(key / (key.square().mean() + 1e-6).sqrt())
                    asked.append((router.query @ pooled, router.bias))
                query, bias = asked[-1]
                weights = [
                    1 + torch.tanh(query @ keys[source] / 2 + bias[source])
                    for source in range(target)
                ]
                live = [source for source in range(target) if features[source] is not None]
                reaching = [source for source in live if weights[source] > 0.5]
                if target == last and not reaching:
                    reaching = [max(live, key=lambda one: (float(weights[one]), one))]
                    weights[reaching[0]] = torch.ones(())
                found = gates.adjacency(stage)[number, :target, target]
                wanted = [weights[one] if one in reaching else 0 for one in range(target)]
                assert torch.allclose(found, torch.tensor(wanted).double(), atol=1e-12)
                total = sum((weights[one] * features[one] for one in reaching), torch.zeros(()))
                if target < last:
                    is_dead = not reaching
                    features.append(None if is_dead else model.blocks[target - 1](total) - total)
            assert torch.allclose(model.head(total), outputs[number], atol=1e-12)


def test_an_archive_brings_it_back(tmp_path: Path) -> None:
    model, _ = converted("lifted")
    net, x = build("lifted")
    dggraph.save(net, tmp_path / "archive")
    again = dggraph.load(tmp_path / "archive", model=copy.deepcopy(model))
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


def test_compilers_and_exporters_see_the_same_network() -> None:
    net, x = build("lifted")
    with torch.no_grad():
        expected, _ = run(net, x, "dense")
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
        assert torch.allclose(compiled(x), expected, atol=1e-12)
        assert torch.allclose(torch.export.export(net, (x,)).module()(x), expected, atol=1e-12)
    torch._dynamo.reset()


def test_prepared_networks_agree() -> None:
    net, x = build("kept")
    fast = dggraph.optimize_for_inference(net)
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(fast(x), expected, atol=1e-9 * float(expected.abs().max()))


def test_edges_into_a_node_may_compete() -> None:
    model = Net("kept", 3).eval()
    net = dggraph.convert(model, torch.zeros(1, 3, SIDE, SIDE), router="content", gate="softmax")
    x = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))


def test_pinned_gates_reach_the_edges_that_each_router_decides() -> None:
    net, x = build("kept")
    weights = {
        stage: torch.linspace(0.6, 1.2, len(net.graph.edges(stage))) for stage in net.graph.stages
    }
    with pinned_gates(net, weights):
        for executor in ("dense", "sparse"):
            _, gates = run(net, x, executor)
            for stage, wanted in weights.items():
                assert torch.allclose(gates.weights[stage][0], wanted.double())


def test_macs_count_queries_keys_and_their_products() -> None:
    net, _ = build("kept")
    table = net.macs_table
    plain = dggraph.convert(converted("kept")[0], torch.zeros(1, 3, SIDE, SIDE).double())
    for stage, found in table.stages.items():
        channels = net.graph.nodes(stage)[0].shape[0]
        for vertex, macs in enumerate(found.vertices[:-1]):
            outgoing = len(found.topology.outgoing()[vertex])
            own = macs - (plain.macs_table.stages[stage].vertices[vertex] - channels * outgoing)
            incoming = vertex + 1
            assert own == 2 * 4 * channels + 4 * incoming


@pytest.mark.parametrize("router", ["content(0)", "content(width=-1)"])
def test_queries_without_a_width_are_refused(router: str) -> None:
    with pytest.raises(InputError, match=r"content\(-?\d\): queries|whole numbers, from 0 on"):
        dggraph.convert("dggraph:resnet14_4", router=router)


def test_several_weights_an_edge_are_refused() -> None:
    with pytest.raises(InputError, match="one weight"):
        dggraph.convert(
            Net("kept", 3).eval(),
            torch.zeros(1, 3, SIDE, SIDE),
            router="content",
            granularity="channel",
        )
