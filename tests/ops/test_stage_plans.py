"""Plans by pattern: what a stage runs equals a plain loop over its nodes, the order of sums and
what is freed never show, and what may change is read at every pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from kinds import KINDS, converted
from torch import Tensor, nn

import dggraph
from dggraph.compiler.inlining import Inliner
from dggraph.ops import stage_plans
from dggraph.ops.liveness import Topology, live_vertices, settle
from dggraph.ops.running_sum import Effects
from dggraph.ops.stage_plans import StagePlans, run_plan, weights_for
from dggraph.ops.stage_walk import walk_stage

NUM_VERTICES = 6
EDGES = [(s, t) for t in range(1, NUM_VERTICES) for s in range(t)]
TOPOLOGY = Topology(tuple(s for s, _ in EDGES), tuple(t for _, t in EDGES))
THRESHOLD = np.asarray(0.5, dtype=np.float32)
VARIED = np.arange(len(EDGES)) % 2 == 0
"""The edges whose weights differ between images where only a part of them does."""


def block(vertex: int, x: Tensor) -> Tensor:
    return torch.sin(x * vertex) + 0.1 * vertex


def plain(entry: Tensor, weights_BE: Sequence[Sequence[float]]) -> Tensor:
    """Image by image, node by node, edge by edge, in float64."""
    rows = []
    for x, weights in zip(entry.double(), weights_BE, strict=True):
        features: list[Any] = [x]
        for vertex in range(1, NUM_VERTICES):
            total = torch.zeros_like(x)
            incoming = [e for e, (_, t) in enumerate(EDGES) if t == vertex]
            is_reached = False
            for edge in incoming:
                source = features[EDGES[edge][0]]
                if source is not None and weights[edge] > 0.5:
                    total, is_reached = total + weights[edge] * source, True
            if vertex == NUM_VERTICES - 1:
                if not is_reached:
                    live = [e for e in incoming if features[EDGES[e][0]] is not None]
                    total = features[EDGES[max(live, key=lambda e: (weights[e], e))][0]]
                rows.append(total)
            else:
                features.append(block(vertex, total) if is_reached else None)
    return torch.stack(rows)


def random_rows(seed: int, kind: str) -> np.ndarray:
    generator = np.random.default_rng(seed)
    row = generator.random(len(EDGES)).astype(np.float32)
    if kind == "ones":
        row = (row > 0.4).astype(np.float32)
    elif kind in ("equal by node", "varied in part"):  # so that sums go on from the one before
        row = np.asarray([0.55 + 0.07 * s for s, _ in EDGES], np.float32) * (row > 0.3)
    elif kind == "cut off":
        row[[e for e, (_, t) in enumerate(EDGES) if t == NUM_VERTICES - 1]] *= 0.4
    return row


@pytest.mark.parametrize("kind", ["any", "ones", "equal by node", "cut off", "varied in part"])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("effects", ["none", "written", "kept"])
def test_plans_compute_what_a_plain_loop_does(kind: str, num_images: int, effects: str) -> None:
    plans, kept, changed = StagePlans(TOPOLOGY), [], []
    for seed in range(40):
        row = random_rows(seed, kind)
        varies = row > (0.5 if kind != "varied in part" else np.where(VARIED, 0.5, np.inf))
        raw_BE = np.stack([row * (1 + 0.01 * b * varies) for b in range(num_images)])
        entry = torch.randn(
            num_images,
            3,
            4,
            4,
            generator=torch.Generator(torch.get_default_device()).manual_seed(seed),
        )
        entry = entry.double()

        def run_block(vertex: int, x: Tensor) -> Tensor:
            output = block(vertex, x)
            if effects == "written":
                x.fill_(torch.nan)
            if effects == "kept":
                kept.append(x)
                changed.append(x.clone())
            return output

        effect = Effects(is_written=effects == "written", is_kept=effects == "kept")
        before = entry.clone()
        for _ in range(2):  # the second pass takes the plan that the first has kept
            found_plans = {plans.find(row, 0.5) for row in raw_BE.tolist()}
            (plan,) = found_plans
            assert plan is not None
            weights = weights_for(plan, raw_BE.tolist(), entry)
            applied = settle(raw_BE, TOPOLOGY, THRESHOLD, False).tolist()
            assert [plan.weights(row) for row in raw_BE.tolist()] == applied
            found = run_plan(plan, entry, weights, run_block, [effect] * (NUM_VERTICES - 1))
            expected = plain(entry, raw_BE.tolist())
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(entry, before)
    assert all(torch.equal(one, other) for one, other in zip(kept, changed, strict=True))
    assert effects != "kept" or kept


@pytest.mark.parametrize("kind", ["any", "ones", "equal by node", "cut off"])
@pytest.mark.parametrize("effects", ["none", "written", "kept"])
def test_walks_compute_what_a_plain_loop_does(kind: str, effects: str) -> None:
    for seed in range(40):
        row, kept, asked = random_rows(seed, kind), [], []
        entry = torch.randn(
            1, 3, 4, 4, generator=torch.Generator(torch.get_default_device()).manual_seed(seed)
        ).double()

        def decide(
            vertex: int,
            edges: list[int],
            output: Tensor | None,
            row: Any = row,
            asked: Any = asked,
        ) -> Any:
            asked.append((vertex, output is None))
            assert edges == [e for e, (s, _) in enumerate(EDGES) if s == vertex]
            return [float(row[e]) for e in edges]

        def run_block(vertex: int, x: Tensor, kept: Any = kept) -> Tensor:
            output = block(vertex, x)
            if effects == "written":
                x.fill_(torch.nan)
            if effects == "kept":
                kept.append((x, x.clone()))
            return output

        effect = Effects(is_written=effects == "written", is_kept=effects == "kept")
        found, weights, raw = walk_stage(
            entry,
            TOPOLOGY,
            0.5,
            decide,
            run_block,
            [effect] * (NUM_VERTICES - 1),
            float,
            {},
        )
        expected = plain(entry, [row.tolist()])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert raw == row.tolist()
        assert weights == settle(row[None], TOPOLOGY, THRESHOLD, False)[0].tolist()
        live = live_vertices(np.asarray([weights]) != 0, TOPOLOGY)[0]
        assert asked == [(v, not live[v]) for v in range(NUM_VERTICES - 1)]
        assert all(torch.equal(one, other) for one, other in kept)


def test_a_plan_belongs_to_a_pattern() -> None:
    plans = StagePlans(TOPOLOGY)
    row = [0.7] * len(EDGES)
    other = [*row[:3], 0.2, *row[4:]]
    assert plans.find(row, 0.5) is not plans.find(other, 0.5)
    assert plans.find(row, 0.5) is plans.find([1.1 * weight for weight in row], 0.5)
    assert plans.find(row, 0.71) is not plans.find(row, 0.5)


def test_there_is_no_plan_where_no_edge_leads_to_out() -> None:
    """v2 is dead, and `out` reads nothing else."""
    plans = StagePlans(Topology((0, 1, 2), (1, 2, 3)))
    assert plans.find([0.7, 0.1, 0.7], 0.5) is None
    assert plans.find([0.7, 0.7, 0.1], 0.5) is not None


def test_the_least_recently_used_plan_goes_first() -> None:
    plans = StagePlans(TOPOLOGY)
    plans.capacity = 2
    rows = [[0.1 if edge == closed else 0.7 for edge in range(len(EDGES))] for closed in range(3)]
    first, second = (plans.find(row, 0.5) for row in rows[:2])
    assert plans.find(rows[0], 0.5) is first
    plans.find(rows[2], 0.5)
    assert plans.find(rows[0], 0.5) is first
    assert plans.find(rows[1], 0.5) is not second
    assert len(plans.plans) == 2


@pytest.mark.parametrize("num_vertices", [6, 24])
def test_plans_are_counted_and_stay_within_their_bound(
    num_vertices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_plans, "MAX_BYTES", 1 << 20)
    edges = [(s, t) for t in range(1, num_vertices) for s in range(t)]
    plans = StagePlans(Topology(tuple(s for s, _ in edges), tuple(t for _, t in edges)))
    assert plans.kept().num_patterns == 0
    generator = np.random.default_rng(0)
    sizes = []
    for _ in range(2 * plans.capacity):
        plans.find((generator.random(len(edges)) + 0.1).tolist(), 0.5)
        sizes.append(plans.kept().num_bytes if len(sizes) < 3 else 0)
    assert sizes[0] < sizes[1] < sizes[2]
    kept = plans.kept()
    assert kept.num_patterns == len(plans.plans) == plans.capacity
    assert kept.num_bytes < 1 << 20


def test_a_network_tells_what_it_keeps() -> None:
    """Per stage with plans; inlined or not, the plans are the same ones."""
    net, x = converted("kept", "stage"), torch.rand(1, 3, 16, 16)
    net.forget_program()
    assert net.kept_plans() == {}
    with torch.inference_mode():
        for _ in range(3):
            net(x)
            found = net.kept_plans()
            assert list(found) == list(net.graph.stages)
            assert {one.num_patterns for one in found.values()} == {1}
            assert all(one.num_bytes > 500 for one in found.values())
        assert set(converted("kept", "node").kept_plans()) == set()
    net.forget_program()
    assert net.kept_plans() == {}


def test_an_edge_forced_open_follows_the_weights() -> None:
    """Nothing reaches `out`: which edge opens is asked anew for the same pattern."""
    plans, entry = StagePlans(TOPOLOGY), torch.randn(1, 2, 2, 2)
    into_out = [e for e, (_, t) in enumerate(EDGES) if t == NUM_VERTICES - 1]
    for _ in range(2):
        for best in into_out:
            row = [0.7] * len(EDGES)
            for edge in into_out:
                row[edge] = 0.1
            row[best] = 0.3
            plan = plans.find(row, 0.5)
            assert plan is not None
            assert plan.forced == best
            assert weights_for(plan, [row], entry)[best] == 1.0
        assert len(plans.plans) == len(into_out)
    equal = [0.7 if edge not in into_out else 0.1 for edge in range(len(EDGES))]
    plan = plans.find(equal, 0.5)
    assert plan is not None
    assert plan.forced == into_out[-1]  # ties: the later node


@pytest.mark.parametrize("router", ["stage", "node"])
@pytest.mark.parametrize("kind", ["kept", "lifted", "tokens", "concat", "adapter"])
def test_networks_give_with_plans_what_they_give_without(
    kind: str, router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = converted(kind, router)
    with torch.no_grad():
        for parameter in net.lowered.dg_layers.parameters():
            parameter.normal_(std=2.0)
    images = torch.randn(6, 3, 16, 16) * torch.logspace(-1, 1, 6)[:, None, None, None]
    pairs = torch.cat([images[[0, 4]], images[[4, 0]], images[[0, 0]]])  # run in groups
    batches = [images[:1], images[1:2], images[2:3].expand(3, -1, -1, -1), images, pairs]
    with torch.inference_mode():
        found = [[net(x, return_gates=True) for _ in range(4)][-1] for x in batches]
        monkeypatch.setattr(StagePlans, "find", lambda *_: None)
        program = net._inliner.inlined.program
        steps = [
            (replace(step, sums_only=False) if hasattr(step, "sums_only") else step, spent)
            for step, spent in program.steps
        ]
        by_rows = replace(program, steps=tuple(steps))
        monkeypatch.setattr(Inliner, "program", lambda *_: by_rows)  # nothing walks
        without = [net(x, return_gates=True) for x in batches]
    assert len({tuple(row) for row in found[-1][1].open["layers"].tolist()}) > 1
    for (y, gates), (expected, other) in zip(found, without, strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(gates.weights["layers"], other.weights["layers"])
        assert torch.equal(gates.raw["layers"], other.raw["layers"])


def test_threshold_temperature_and_weights_are_read_at_every_pass() -> None:
    net = converted("kept", "stage")
    x = torch.rand(1, 3, 16, 16)
    routing = net.lowered.dg_layers

    def dense() -> Tensor:
        net.executor = "dense"
        y = net(x)
        net.executor = "auto"
        return y

    with torch.no_grad():
        routing.router_0.weight.zero_()
        routing.router_0.bias.copy_(torch.linspace(0.2, 1.1, len(routing.router_0.bias)))
        for _ in range(3):
            net(x)
        for change in (
            lambda: routing.threshold.fill_(0.65),
            lambda: net.set_temperature(0.3),
            lambda: routing.router_0.bias.mul_(0.5),
            lambda: net.get_parameter("layers.0.conv1.weight").mul_(0.5),
        ):
            before = net(x)
            change()
            assert not torch.equal(net(x), before)
            torch.testing.assert_close(net(x), dense(), rtol=1e-5, atol=1e-6)


def test_nan_in_a_router_is_named() -> None:
    net = converted("kept", "stage")
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        for _ in range(3):
            net(x)
        net.lowered.dg_layers.router_0.bias[2] = torch.nan
        with pytest.raises(dggraph.errors.GateError, match="is NaN for instance 0"):
            net(x)


def test_a_block_that_keeps_its_input_keeps_what_it_saw() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.seen = nn.Conv2d(4, 4, 3, padding=1), []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            return torch.relu(self.conv(x))

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*(Keeping() for _ in range(4))))
    net = dggraph.convert(model.eval(), torch.rand(2, 3, 8, 8), router="stage", leaves=(Keeping,))
    blocks = [block for block in net.modules() if isinstance(block, Keeping)]
    x, inputs = torch.rand(1, 3, 8, 8), {}
    with torch.no_grad():
        for stage in net.graph.stages:
            net.lowered.get_submodule(f"dg_{stage}").router_0.bias.fill_(20.0)  # every edge open
        for executor in ("dense", "auto", "auto", "auto"):
            net.executor = executor
            for each in blocks:
                each.seen.clear()
            net(x)
            inputs[executor] = [each.seen[0].clone() for each in blocks]
            assert all(
                torch.equal(each.seen[0], i)
                for each, i in zip(blocks, inputs[executor], strict=True)
            )
    assert len(inputs["auto"]) == 4
    for found, expected in zip(inputs["auto"], inputs["dense"], strict=True):
        torch.testing.assert_close(found, expected)


def test_a_stage_that_nothing_leads_through_runs_once_and_gives_zeros() -> None:
    backbone = KINDS["kept"]().eval()
    net = dggraph.convert(backbone, torch.rand(1, 3, 16, 16), wiring="chain", allow_static=True)
    net.eval()
    routing, calls = net.lowered.dg_layers, []
    with torch.no_grad():
        routing.router_0.bias.fill_(-20.0)
        routing.router_0.register_forward_hook(lambda *_: calls.append(1))
        x = torch.rand(1, 3, 16, 16)
        found, gates = net(x, return_gates=True)
        assert len(calls) == 1
        net.executor = "dense"
        expected, other = net(x, return_gates=True)
    assert torch.equal(found, expected)
    assert torch.equal(found, net.head.bias.expand_as(found))
    assert torch.equal(gates.weights["layers"], other.weights["layers"])
    assert not gates.open["layers"].any()
