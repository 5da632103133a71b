"""Edges with several weights: exact at the start, the same under every executor and as a loop."""

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
from dggraph.compiler.lowered import routing_of
from dggraph.errors import InputError, WiringError
from dggraph.network.gate_contexts import pinned_gates

GRANULARITIES = ("channel", 2, "pixel")
CASES = [(granularity, router) for granularity in GRANULARITIES for router in ("node", "stage")]
OFTEN = (("channel", "node"), ("pixel", "stage"))
"""Cases in each run of the suite where one takes ten seconds; the others are slow."""


@cache
def converted(kind: str, granularity: Any, router: str) -> tuple[nn.Module, Any]:
    model = randomise(Tokens(3) if kind == "tokens" else Net(kind, 3), 3).double().eval()
    example = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    return model, dggraph.convert(model, example, router=router, granularity=granularity)


def build(kind: str, granularity: Any, router: str, bias: float = 0.0) -> tuple[Any, Tensor]:
    """A network whose routers depend on the image, and images."""
    net = copy.deepcopy(converted(kind, granularity, router)[1])
    randomise_routers(net, 1)
    with torch.no_grad():
        for name, parameter in net.lowered.named_parameters():
            if name.startswith("dg_") and name.endswith(".bias"):
                parameter.add_(bias)
    generator = torch.Generator(torch.get_default_device()).manual_seed(2)
    return net, torch.randn(6, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ["kept", "lifted", "tokens"])
@pytest.mark.parametrize(("granularity", "router"), CASES)
def test_it_starts_as_the_backbone_and_every_parameter_learns(
    kind: str, granularity: Any, router: str
) -> None:
    model, net = converted(kind, granularity, router)
    net = copy.deepcopy(net)
    x = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    assert {stage.granularity for stage in net.report.stages} == {granularity}
    assert_all_learn(net, x, num_steps=1)


@pytest.mark.parametrize("kind", ["kept", "lifted", "tokens"])
@pytest.mark.parametrize(("granularity", "router"), CASES)
@pytest.mark.parametrize("bias", [0.0, -0.7, -50.0])
def test_executors_agree(kind: str, granularity: Any, router: str, bias: float) -> None:
    net, x = build(kind, granularity, router, bias)
    gates, sparse_gates = assert_executors_agree(net, x)
    for stage, weights in gates.weights.items():
        assert torch.equal(weights != 0, sparse_gates.weights[stage] != 0)
        assert torch.allclose(gates.parts[stage], sparse_gates.parts[stage], atol=1e-12)
        assert not gates.parts[stage][weights == 0].any()
        assert torch.equal(
            gates.parts[stage].flatten(2).amax(2)[weights != 0], weights[weights != 0]
        )
    if bias == -50.0:  # nothing opens but what the rule for `out` does
        assert all(bool(((parts == 0) | (parts == 1)).all()) for parts in gates.parts.values())


FORMS = [("tied", None), ("constant", None), ("node", "shrink"), ("stage", "shrink")]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("router", "gate"), [*FORMS, ("stage", "softmax"), ("node", "scaled")])
def test_every_router_and_gate_goes_with_it(granularity: Any, router: str, gate: str) -> None:
    if granularity == "pixel" and router == "constant":
        pytest.skip("constants by position would depend on the size of the images")
    model = randomise(Net("kept", 3), 3).double().eval()
    example, threshold = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64), 0.4
    if gate == "scaled":
        threshold = 0.0
    options = {"router": router, "gate": gate, "granularity": granularity}
    net = dggraph.convert(model, example, threshold=threshold, **options)
    x = torch.randn(6, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    randomise_routers(net, 1)
    gates, sparse_gates = assert_executors_agree(net, x)
    (stage,) = gates.parts
    parts, others = gates.parts[stage], sparse_gates.parts[stage]
    assert torch.allclose(parts, others, atol=1e-12)
    if gate == "shrink":
        largest = parts.flatten(2).amax(2)
        assert torch.allclose(largest, gates.weights[stage], atol=1e-12)
        is_open = (gates.weights[stage] != 0) & (gates.raw[stage] > threshold)
        expected = (gates.raw[stage] - threshold) / (1 - threshold)
        assert torch.allclose(largest[is_open], expected[is_open], atol=1e-6)
    if router == "tied":
        rows: dict[int, Tensor] = {}
        static = [edge.is_static for edge in net.graph.edges(stage)]
        for edge, source in enumerate(net.macs_table.stages[stage].topology.sources):
            if float(gates.weights[stage][0, edge]) and gates.raw[stage][0, edge] > threshold:
                move = parts[0, edge] - float(static[edge])
                assert torch.allclose(rows.setdefault(source, move), move, atol=1e-12)
        assert rows


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_is_a_plain_loop_over_images_nodes_and_sources(granularity: Any) -> None:
    model = randomise(Small(), 5).double().eval()
    net = dggraph.convert(model, X[:1].double(), granularity=granularity)
    randomise_routers(net, 6)
    with torch.no_grad():
        outputs = net(X.double())
        expected = torch.cat(
            [_walk(model, net, image, granularity) for image in X.double().split(1)]
        )
    assert torch.allclose(outputs, expected, atol=1e-12)


def _walk(model: Any, net: Any, image: Tensor, granularity: Any) -> Tensor:
    (stage,) = net.graph.stages
    routing, features, weights = net.lowered.get_submodule(f"dg_{stage}"), [], {}
    features.append(model.stem(image))
    num_blocks = len(model.blocks)
    for target in range(1, num_blocks + 2):
        source = target - 1
        router, z = routing.router(source), features[source]
        targets = range(target, num_blocks + 2)
        if z is not None and granularity == "pixel":
            scale = z.square().mean(1, keepdim=True).add(1e-6).sqrt()
            flat = (z / scale)[0].flatten(1).T
            hidden = nn.functional.gelu(flat @ router.hidden.weight.T + router.hidden.bias)
            logits = (hidden @ router.weight.T + router.bias).T.reshape(-1, 1, *z.shape[2:])
        elif z is not None:
            pooled = z[0].mean((1, 2))
            logits = (router.weight @ pooled + router.bias).reshape(len(targets), -1)
            logits = logits.repeat_interleave(z.shape[1] // logits.shape[1], 1)[..., None, None]
        if z is not None:
            for place, other in enumerate(targets):
                weights[source, other] = 1 + logits[place].tanh()  # lifted: all edges are static
        reaching = [
            one
            for one in range(target)
            if features[one] is not None and float(weights[one, target].max()) > 0.5
        ]
        if not reaching and target == num_blocks + 1:
            live = [one for one in range(target) if features[one] is not None]
            reaching = [max(live, key=lambda one: (float(weights[one, target].max()), one))]
            weights[reaching[0], target] = torch.ones(())
        if not reaching:
            features.append(None)
            continue
        total = sum(weights[one, target] * features[one] for one in reaching)
        if target == num_blocks + 1:
            return model.head(total)  # type: ignore[no-any-return]
        features.append(model.blocks[source](total) - total)
    raise AssertionError


@pytest.mark.parametrize(("granularity", "router"), CASES)
def test_an_archive_brings_it_back(granularity: Any, router: str, tmp_path: Path) -> None:
    model, _ = converted("kept", granularity, router)
    net, x = build("kept", granularity, router)
    dggraph.save(net, tmp_path / "archive")
    again = dggraph.load(tmp_path / "archive", model=copy.deepcopy(model))
    assert again.blueprint.granularity == granularity
    with torch.no_grad():
        assert torch.equal(again(x), net(x))


@pytest.mark.parametrize(
    ("granularity", "router"),
    [pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES],
)
def test_compilers_and_exporters_see_the_same_network(granularity: Any, router: str) -> None:
    net, x = build("lifted", granularity, router)
    with torch.no_grad():
        expected, _ = run(net, x, "dense")
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
        assert torch.allclose(compiled(x), expected, atol=1e-12)
        exported = torch.export.export(net, (x,)).module()
        assert torch.allclose(exported(x), expected, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_compiled_training_has_the_eager_gradients(granularity: Any) -> None:
    net, x = build("lifted", granularity, "stage")
    net.train()

    def gradients(forward: Any) -> list[Tensor]:
        parameters = [one for one in net.parameters() if one.requires_grad]
        return list(torch.autograd.grad(forward(x).square().mean(), parameters))

    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    for eager, other in zip(gradients(net), gradients(compiled), strict=True):
        assert torch.allclose(eager, other, rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_prepared_networks_agree(granularity: Any) -> None:
    net, x = build("kept", granularity, "stage")
    fast = dggraph.optimize_for_inference(net)
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(fast(x), expected, atol=1e-9 * float(expected.abs().max()))


def test_recordings_show_the_mean_and_how_far_the_weights_differ() -> None:
    net, x = build("kept", "channel", "stage")
    recording, (_, gates) = dggraph.record(net, x), run(net, x, "sparse")
    (stage,) = net.graph.stages
    parts = gates.parts[stage].flatten(2)
    assert torch.allclose(
        torch.tensor(recording.paths[2].weights[stage]).double(), parts[2].mean(1)
    )
    active = (parts[2] != 0).any(1)
    spread = float(parts[2].std(1, correction=0)[active].mean())
    assert recording.paths[2].spread == pytest.approx(spread)
    edges = net.graph.edges(stage)
    names = [node.name for node in net.graph.nodes(stage)]
    places = [(names.index(edge.source), names.index(edge.target)) for edge in edges]
    for edge, (row, column) in enumerate(places):
        assert recording.adjacency[stage][2, row, column] == pytest.approx(
            float(parts[2, edge].mean())
        )


def test_pinned_weights_go_to_all_parts() -> None:
    net, x = build("kept", "channel", "stage")
    model, plain = converted("kept", "channel", "stage")
    weights = {
        stage: torch.tensor([float(edge.is_static) for edge in net.graph.edges(stage)])
        for stage in net.graph.stages
    }
    with torch.no_grad(), pinned_gates(net, weights):
        assert torch.equal(net(x), model(x))
    assert plain.blueprint.granularity == "channel"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("router", ["node", "stage"])
def test_one_pinned_weight_for_each_edge_closes_blocks_too(granularity: Any, router: str) -> None:
    """A block that no image reaches has no router that could give its edges several weights."""
    net, x = build("lifted", granularity, router)
    weights = {stage: torch.ones(len(net.graph.edges(stage))) for stage in net.graph.stages}
    first = net.graph.nodes(next(iter(weights)))[1].name
    for stage, own in weights.items():
        own[[first in (edge.source, edge.target) for edge in net.graph.edges(stage)]] = 0
    with pinned_gates(net, weights):
        gates, sparse_gates = assert_executors_agree(net, x)
    for stage, own in weights.items():
        assert torch.equal(gates.weights[stage], own.to(gates.weights[stage]).expand(len(x), -1))
        assert torch.equal(gates.weights[stage], sparse_gates.weights[stage])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("router", ["node", "stage"])
@torch.no_grad()
def test_changes_within_a_gate_are_seen(granularity: Any, router: str) -> None:
    """The gate of one weight is inside that of several; single images use it as a function."""
    net, x = build("kept", granularity, router)
    one = x[:1]
    for _ in range(3):
        net(one)
    gate = routing_of(net.lowered, next(iter(net.graph.stages))).gate(0).gate
    for change in (
        lambda: gate.temperature.fill_(0.2),
        lambda: setattr(gate, "temperature", torch.full_like(gate.temperature, 3.0)),
        lambda: gate.register_forward_hook(lambda _module, _args, output: output * 0.9),
    ):
        before = net(one)
        change()
        found = net(one)
        assert not torch.equal(found, before)
        expected, _ = run(net, one, "dense")
        assert torch.allclose(found, expected, rtol=1e-12)
        for _ in range(3):
            assert torch.allclose(net(one), expected, rtol=1e-12)


def test_a_stage_that_concatenates_keeps_one_weight_an_edge() -> None:
    with pytest.raises(WiringError, match="concatenate"):
        dggraph.convert(Net("concat", 3).eval(), torch.zeros(1, 3, SIDE, SIDE), granularity=2)


@pytest.mark.parametrize(
    ("granularity", "router", "match"),
    [
        (5, "node", "cannot be split"),
        ("edges", "node", "is not one of"),
        (0, "node", "is not one of"),
        (True, "node", "is not one of"),
        ("pixel", "node(4)", "for every position"),
        ("pixel", "constant", "for every position"),
    ],
)
def test_what_cannot_be_is_refused(granularity: Any, router: str, match: str) -> None:
    with pytest.raises((InputError, WiringError), match=match):
        dggraph.convert(
            Net("kept", 3).eval(),
            torch.zeros(1, 3, SIDE, SIDE),
            router=router,
            granularity=granularity,
        )
