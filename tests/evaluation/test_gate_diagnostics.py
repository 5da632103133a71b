"""Gate health: counts equal those of recordings, and each warning appears for the fault it
describes and not otherwise.
"""

import math
from collections import Counter

import pytest
import torch
from reference import randomise_routers
from routed import convert, images

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation import gate_diagnostics as health
from dggraph.evaluation.gate_diagnostics import GateHealth, HealthReport, check_gates
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork


def pinned(net: DynamicNetwork, weights_BE: torch.Tensor) -> HealthReport:
    """What is reported if the gates give these weights."""
    with pinned_gates(net, {"body": weights_BE.double()}):
        return check_gates(net, [images(len(weights_BE), 0)])


@pytest.mark.parametrize("router", ["node", "stage"])
def test_counts_are_those_of_recordings(router: str) -> None:
    _, net = convert("kept", router)
    randomise_routers(net, 5, 0.4).train()
    x = images(60, 0)
    report = check_gates(net, [(x[:25], None), (x[25:], None)])
    assert net.training
    assert report.num_instances == 60
    paths = dggraph.record(net, x, batch_size=60).paths
    edges = Counter(edge for path in paths for edge in path.active_edges(net.graph))
    nodes = Counter(node for path in paths for node in path.live_nodes(net.graph))
    patterns = Counter(tuple(w != 0 for w in path.weights["body"]) for path in paths)
    assert report.open_fractions == {
        edge: pytest.approx(edges[edge] / 60) for edge in net.graph.edges("body")
    }
    blocks = [node.name for node in net.graph.nodes("body")[1:-1]]
    assert report.live_fractions == {name: pytest.approx(nodes[name] / 60) for name in blocks}
    assert set(report.always_open) == {edge for edge, count in edges.items() if count == 60}
    assert set(report.always_closed) == set(net.graph.edges("body")) - set(edges)
    assert report.num_paths == len(patterns) > 5
    entropy = -sum(count / 60 * math.log2(count / 60) for count in patterns.values())
    assert report.path_entropy_bits == pytest.approx(entropy)


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("kind", ["kept", "lifted"])
def test_an_untrained_network_is_told_so(kind: str, router: str) -> None:
    _, net = convert(kind, router)
    report = check_gates(net, [images(8, 0)])
    assert report.num_paths == 1
    assert report.path_entropy_bits == 0
    assert not report.never_live
    assert set(report.always_open) == {edge for edge in net.graph.edges("body") if edge.is_static}
    (warning,) = report.warnings
    assert warning.startswith("Every image takes one path")
    assert "untrained" in warning
    assert "losses.budget" in warning


def test_weights_that_never_cross_the_threshold() -> None:
    _, net = convert("kept", "node")
    randomise_routers(net, 1, 0.01)
    for router in net.lowered.dg_body.children():
        for name, parameter in router.named_parameters():
            if name == "bias":
                torch.nn.init.zeros_(parameter)
    (warning,) = check_gates(net, [images(8, 0)]).warnings
    assert warning.startswith("Every image takes one path: weights differ")
    (warning,) = check_gates(net, [images(1, 0)]).warnings
    assert warning.startswith("Only one image")


def test_dead_blocks_and_blocks_that_run_for_nothing() -> None:
    # 0-1 | 0-2 1-2 | 0-3 1-3 2-3 | 0-4 1-4 2-4 3-4 | 0-out .. 4-out
    row = [1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0]  # block 2 is dead, block 4 leads nowhere
    other = [1, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0]
    weights = torch.tensor([row, other] * 3)
    for router, has_waste in (("node", True), ("stage", False)):
        _, net = convert("kept", router)
        report = pinned(net, weights)
        names = [node.name for node in net.graph.nodes("body")]
        assert report.never_live == (names[2],)
        assert report.num_paths == 2
        assert report.path_entropy_bits == 1
        dead = [
            warning
            for warning in report.warnings
            if warning.startswith(f"No image reaches {names[2]}:")
        ]
        wasted = [
            warning
            for warning in report.warnings
            if warning.startswith(f"{names[4]}: computed, but")
        ]
        assert len(dead) == 1
        assert len(wasted) == has_waste
        assert len(report.warnings) == 1 + has_waste


def test_edges_close_and_nothing_is_saved() -> None:
    _, net = convert("kept", "node")
    everything = torch.ones(40, 15)
    everything[::2, 10] = 0  # v0 -> out
    (warning,) = pinned(net, everything).warnings
    assert warning.startswith("Edges close, but every block runs")


def test_one_path_for_nearly_all() -> None:
    _, net = convert("kept", "stage")
    weights = torch.ones(40, 15)
    weights[0, :10] = 0
    (warning,) = pinned(net, weights).warnings
    assert warning.startswith("98% of the images take the same path")
    weights[:10, :10] = 0
    assert pinned(net, weights).warnings == ()


def test_near_ties_of_live_sources_alone() -> None:
    _, net = convert("kept", "stage")
    weights = torch.ones(40, 15)
    weights[:20, 14] = 0.50005
    weights[:10, :10] = 0
    weights[:10, 11] = 0.49999  # leaves block 1, which is dead there
    report = pinned(net, weights)
    (edge,) = report.tie_fractions
    assert edge == net.graph.edges("body")[14]
    assert report.tie_fractions[edge] == pytest.approx(10 / 40)
    (warning,) = report.warnings
    assert f"{edge.source} -> {edge.target}: closer than 0.0001" in warning
    assert "25%" in warning


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, net = convert("kept", "node")
    randomise_routers(net, 5, 0.4).eval()
    counter = GateHealth(net.graph)
    with pytest.raises(InputError, match="update"):
        counter.report()
    monkeypatch.setattr(health, "MAX_PATHS", 3)
    for seed in range(3):
        counter.update(net.train()(images(30, seed), return_gates=True)[1])
    report = counter.report()
    assert report.num_instances == 90
    assert report.num_paths == len(counter.paths) == 3
    assert report.warnings[-1].startswith("There are 3 different paths or more")
