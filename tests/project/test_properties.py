"""Random small networks under random wirings and random routers: equal to the hooked original,
batch equal to one by one; in thousands, exact at the start, dense equal to sparse, and equal to the
bit when loaded from an archive.

One run of the test covers at least a fixed number of each kind: kept, lifted, concat, adapter, dead
nodes, nothing reaching `out`.
"""

import tempfile
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from random_nets import SIDE, Net
from reference import hooked, randomise, randomise_routers
from torch import Tensor, nn

import dggraph
from dggraph.graph.schema import from_json, to_json
from dggraph.network.network import DynamicNetwork

EXAMPLES, MANY_EXAMPLES, NUM_PARTS = 120, 2000, 8
"""Many examples in parts, which can run in turns: each draws others."""


KINDS = ("kept", "lifted", "concat", "adapter")
seen: Counter[str] = Counter()


DRAWN = {
    "kind": st.sampled_from(KINDS),
    "depth": st.integers(3, 5),
    "router": st.sampled_from(["node", "stage"]),
    "keep_rate": st.sampled_from([1.0, 0.5, 0.2]),
    "bias": st.sampled_from([0.0, -0.7, -3.0, 1.5]),
    "seed": st.integers(0, 10_000),
}


def build(
    kind: str, depth: int, router: str, keep_rate: float, seed: int
) -> tuple[nn.Module, DynamicNetwork, Tensor]:
    """A network, its conversion, and images for them."""
    model = randomise(Net(kind, depth), seed).double().eval()
    example = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    wiring = "complete" if kind in ("lifted", "concat") else f"erdos_renyi({keep_rate}, {seed})"
    net = dggraph.convert(model, example, wiring=wiring, router=router, allow_static=True)
    images = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 3, SIDE, SIDE, dtype=torch.float64, generator=images)
    return model, net, x


def route(net: DynamicNetwork, seed: int, bias: float) -> None:
    """Give routers random weights and shift what they say."""
    randomise_routers(net, seed)
    with torch.no_grad():
        for name, parameter in net.lowered.named_parameters():
            if name.startswith("dg_") and name.endswith("bias"):
                parameter.add_(bias)


def check_random_network(
    kind: str, depth: int, router: str, keep_rate: float, bias: float, seed: int
) -> None:
    model, net, x = build(kind, depth, router, keep_rate, seed)
    (stage,) = net.graph.stages
    assert (
        {edge.kind for edge in net.graph.edges(stage)} <= {"concat"} if kind == "concat" else True
    )
    assert (net.graph.stages[stage].residual == "lift") == (kind == "lifted")
    assert from_json(to_json(net.graph)) == net.graph
    route(net, seed, bias)
    one_by_one = dggraph.record(net, x)
    if min(path.margin for path in one_by_one.paths) < 1e-6:
        seen["near tie"] += 1
        return
    outputs, adjacency = hooked(net, model, x)
    batched = dggraph.record(net, x, batch_size=3)
    torch.testing.assert_close(one_by_one.output, torch.cat(outputs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(batched.output, one_by_one.output, rtol=1e-12, atol=1e-12)
    assert torch.equal(batched.macs, one_by_one.macs)
    seen[kind] += 1
    for path, weights in zip(one_by_one.paths, adjacency[stage], strict=True):
        for edge, weight in zip(net.graph.edges(stage), path.weights[stage], strict=True):
            assert weight == pytest.approx(weights.get((edge.source, edge.target), 0), abs=1e-9)
        seen["dead node"] += len(path.live_nodes(net.graph)) < depth + 2
        into_out = [
            w
            for e, w in zip(net.graph.edges(stage), path.weights[stage], strict=True)
            if e.target.endswith("_out") and w
        ]
        seen["nothing reached out"] += into_out == [1.0]
    seen["adapter edge"] += any(edge.kind == "adapter" for edge in net.graph.edges(stage))


def check_executors_and_archive(
    kind: str, depth: int, router: str, keep_rate: float, bias: float, seed: int
) -> None:
    model, net, x = build(kind, depth, router, keep_rate, seed)
    with torch.no_grad():
        assert torch.equal(net(x), model(x))
    route(net, seed, bias)
    if min(path.margin for path in dggraph.record(net, x).paths) < 1e-6:
        seen["near tie"] += 1
        return
    outputs = {}
    for executor in ("sparse", "dense"):
        net.executor = executor
        with torch.no_grad():
            outputs[executor] = net(x)
    torch.testing.assert_close(outputs["sparse"], outputs["dense"], rtol=1e-12, atol=1e-12)
    with tempfile.TemporaryDirectory() as folder:
        dggraph.save(net, f"{folder}/net")
        again = dggraph.load(f"{folder}/net", model=model)
    assert again.graph == net.graph
    again.executor = "dense"
    with torch.no_grad():
        assert torch.equal(again(x), outputs["dense"])
    seen[kind] += 1


def draw_networks(check: Callable[..., None], number: int, part: int) -> None:
    """Check `number` networks, the same ones at every run."""
    how = settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    seen.clear()
    seed(part)(how(given(**DRAWN)(check)))()


@pytest.mark.attack
@pytest.mark.parametrize("check", [check_random_network, check_executors_and_archive])
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_thousands_of_random_networks(check: Callable[..., None], part: int) -> None:
    count = MANY_EXAMPLES // NUM_PARTS
    draw_networks(check, count, part)
    assert sum(seen[kind] for kind in (*KINDS, "near tie")) >= count
    assert all(seen[kind] >= count / 20 for kind in KINDS), seen
    print(f"{check.__name__}, part {part}: {dict(seen)}")


def test_random_networks() -> None:
    draw_networks(check_random_network, EXAMPLES, NUM_PARTS)
    minimum = {
        "kept": 15,
        "lifted": 15,
        "concat": 15,
        "adapter": 15,
        "adapter edge": 8,
        "dead node": 15,
        "nothing reached out": 15,
    }
    assert sum(seen[kind] for kind in KINDS) >= 113
    assert all(seen[kind] >= count for kind, count in minimum.items()), seen
