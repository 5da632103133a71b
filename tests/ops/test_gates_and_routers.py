"""Gates, routers and aggregation against plain loops and hand-computed numbers."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from dggraph.errors import InputError
from dggraph.ops.aggregation import adapt, aggregate, concatenate
from dggraph.ops.gating import (
    AnchoredGate,
    ScaledGate,
    SigmoidGate,
    SoftmaxGate,
    column,
    find_gate,
    settled_weight,
    shrink,
)
from dggraph.ops.liveness import (
    Topology,
    is_live,
    leads_to_out,
    live_vertices,
    open_edges,
    open_output,
    settle,
)
from dggraph.ops.routing import LinearRouter, find_router
from dggraph.ops.weighted_sum import weighted_sum

HALF = torch.tensor(0.5)


def test_aggregate_equals_a_plain_loop() -> None:
    features = [torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(4)]
    weights = torch.randn(3, 4, dtype=torch.float64)
    weights[0, 1] = weights[2, 3] = 0
    expected = torch.stack(
        [
            sum((weights[b, e] * features[e][b] for e in range(4)), torch.zeros(2, 4, 4))
            for b in range(3)
        ]
    )
    torch.testing.assert_close(aggregate(features, weights), expected, rtol=1e-14, atol=1e-14)


def test_one_open_edge_is_exact_to_the_sign_of_zero() -> None:
    x = torch.tensor([[-0.0, 0.0, 1e-45, -3.0]])
    total = aggregate(
        [torch.full_like(x, torch.inf), x, torch.full_like(x, torch.nan)],
        torch.tensor([[0.0, 1.0, 0.0]]),
    )
    assert torch.equal(total.view(torch.int32), x.view(torch.int32))


def test_results_are_fresh() -> None:
    x = torch.ones(1, 2)
    aggregate([x], torch.ones(1, 1)).add_(5)
    concatenate([x], torch.ones(1, 1), 1).add_(5)
    assert torch.equal(x, torch.ones(1, 2))


def test_gradients_equal_the_naive_expression() -> None:
    features = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    weights = (torch.rand(2, 3, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, *x: aggregate(x, w), (weights, *features))
    assert torch.autograd.gradcheck(lambda w, *x: concatenate(x, w, 1), (weights, *features))


def test_a_closed_edge_passes_gradient_to_its_weight_alone() -> None:
    x = torch.tensor([[2.0, torch.inf, torch.nan]], requires_grad=True)
    weight = torch.zeros(1, 1, requires_grad=True)
    aggregate([x], weight).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 3))
    assert weight.grad is not None
    assert weight.grad.item() == 2.0


def test_adapt_pads_and_crops_channels() -> None:
    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    assert torch.equal(adapt(x, 2, 1), x[:, :2])
    assert torch.equal(adapt(x, 4, 1), torch.cat([x, torch.zeros(1, 1, 2, 2)], 1))
    assert torch.equal(adapt(x, 1, -1), x[..., :1])


def test_gates_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0]])
    assert AnchoredGate([True, False, False])(logits).tolist()[0] == pytest.approx(
        [1, 0, math.tanh(1)]
    )
    assert SigmoidGate([True, False, False])(logits).tolist()[0] == pytest.approx(
        [1 / (1 + math.exp(-1))] * 2 + [1 / (1 + math.exp(-2))]
    )


def test_other_gates_by_hand() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    scaled = ScaledGate([True, False, False]).double()
    assert scaled(logits).tolist()[0] == pytest.approx(
        [1, 0.01 * math.tanh(2), 0.01 * math.tanh(-1)]
    )
    scaled.growth.data.fill_(100.0)
    assert scaled(logits)[0, 1].item() == pytest.approx(0.1 * math.tanh(2))
    softmax = SoftmaxGate([True, False, True], [1, 2, 2]).double()
    softmax.temperature.fill_(0.5)
    one, (two, three) = 2.0, (1 + math.exp(4) + math.exp(-2), 1 + math.exp(4) + math.exp(-2))
    assert softmax(logits).tolist()[0] == pytest.approx(
        [1 + (1 - 1) / one, (math.exp(4) - 1) / two, 1 + (math.exp(-2) - 1) / three]
    )


@pytest.mark.parametrize(
    ("threshold", "is_refused"),
    [(0, False), (0.0999, False), (0.1, True), (0.5, True), (0.9, True), (0.9001, False)],
)
def test_a_threshold_lies_nearer_to_0_or_1_than_weights_move(
    threshold: float, is_refused: bool
) -> None:
    """The bounds of 0.1 are never reached, so a threshold at one of them opens and closes none."""
    with pytest.raises(InputError, match="no edge could") if is_refused else nullcontext():
        find_gate("scaled").refuse_threshold(threshold)
    find_gate("anchored").refuse_threshold(threshold)


def test_a_softmax_begins_at_the_static_weights_at_any_temperature() -> None:
    for number in range(1, 40):
        static = [place % 2 == 0 for place in range(number)]
        gate = SoftmaxGate(static, [1] * number)
        assert gate.temperature == 30
        for temperature in (30, 1, 0.1):
            gate.temperature.fill_(temperature)
            assert gate(torch.zeros(3, number)).tolist() == [[float(one) for one in static]] * 3


def test_a_shrunk_weight_by_hand() -> None:
    """0 at the threshold, 1 at 1, and half of what is above a threshold of .5 counts double."""
    weights = torch.tensor([[0.0, 0.5 + 2**-10, 0.75, 1.0, 1.5, torch.nan]], requires_grad=True)
    found = shrink(weights, HALF)
    assert found[0, :5].tolist() == [0, 2**-9, 0.5, 1, 2]
    assert found[0, 5].isnan()
    found.sum().backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [2] * 6  # closed edges too: what passes is decided before
    array = shrink(weights.detach().numpy(), HALF.numpy())
    assert array[0, :5].tolist() == found[0, :5].tolist()
    assert [settled_weight(0.5, shrinks=True)(one) for one in (0.75, 1.0)] == [0.5, 1]
    assert settled_weight(0.5, shrinks=False)(0.75) == 0.75


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shrunk_weight_of_1_is_exact(threshold: float, dtype: torch.dtype) -> None:
    tau = torch.tensor(threshold)
    assert shrink(torch.ones(1, 1, dtype=dtype), tau).item() == 1
    assert settled_weight(tau.item(), shrinks=True)(1.0) == 1


def test_an_edge_at_the_threshold_is_dropped_and_nan_stays_open() -> None:
    raw = torch.tensor([[0.5, 0.5000001, torch.nan]])
    weights = open_edges(raw, [None, None, None], HALF, False)
    assert weights[0, 0] == 0
    assert weights[0, 1] == raw[0, 1]
    assert weights[0, 2].isnan()
    assert is_live(weights).tolist() == [True]


def test_edges_of_dead_sources_are_closed() -> None:
    raw = torch.ones(2, 2)
    weights = open_edges(raw, [None, torch.tensor([True, False])], HALF, False)
    assert weights.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("raw", "live", "expected"),
    [
        ([0.1, 0.3, 0.2], [True, True], [0, 1, 0]),
        ([0.3, 0.3, 0.2], [True, True], [0, 1, 0]),
        ([0.1, 0.3, 0.2], [False, True], [0, 0, 1]),
        ([0.1, 0.3, 0.2], [False, False], [1, 0, 0]),
        ([0.9, 0.3, 0.2], [True, True], [0.9, 0, 0]),
    ],
)
def test_something_always_reaches_out(
    raw: list[float], live: list[bool], expected: list[float]
) -> None:
    raw_BE = torch.tensor([raw])
    flags: list[Tensor | None] = [None, *(torch.tensor([flag]) for flag in live)]
    weights = open_edges(raw_BE, flags, HALF, False)
    assert open_output(weights, raw_BE, flags, False)[0].tolist() == pytest.approx(expected)


def test_where_no_live_node_has_an_edge_to_out_nothing_opens() -> None:
    raw = torch.tensor([[0.9]])
    dead: list[Tensor | None] = [torch.tensor([False])]
    assert open_output(open_edges(raw, dead, HALF, False), raw, dead, False).tolist() == [[0.0]]


def test_straight_through_acts_in_training_alone() -> None:
    for training, gradient in ((True, [1.0, 1.0, 0.0]), (False, [0.0, 1.0, 0.0])):
        raw = torch.tensor([[0.2, 0.8, 0.9]], requires_grad=True)
        open_edges(raw, [None, None, torch.tensor([False])], HALF, training).sum().backward()
        assert raw.grad is not None
        assert raw.grad[0].tolist() == gradient


def test_straight_through_gradients_of_each_instance_by_itself() -> None:
    def total(raw_E: Tensor) -> Tensor:
        return open_edges(raw_E[None], [None, None, torch.tensor([False])], HALF, True).sum()

    raw = torch.tensor([[0.2, 0.8, 0.9], [0.7, 0.1, 0.6]])
    assert torch.func.vmap(torch.func.grad(total))(raw).tolist() == [[1, 1, 0]] * 2


def test_column_gathers_from_rows() -> None:
    rows = [torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0]])]
    assert column(rows, ((0, 2), (1, 0))).tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize(
    ("shape", "axis", "channels"), [((2, 3, 5, 7), 1, 3), ((2, 5, 7, 3), -1, 3), ((2, 9, 4), -1, 4)]
)
def test_router_pools_everything_but_channels(
    shape: tuple[int, ...], axis: int, channels: int
) -> None:
    router, x = LinearRouter(channels, 2, axis), torch.randn(shape)
    torch.nn.init.normal_(router.weight)
    for instance in range(2):
        means = [
            float(x[instance].select(axis - 1 if axis > 0 else -1, c).mean())
            for c in range(channels)
        ]
        expected = [
            sum(w * m for w, m in zip(row, means, strict=True)) for row in router.weight.tolist()
        ]
        assert router(x)[instance].tolist() == pytest.approx(expected, abs=1e-5)


def test_what_a_router_may_read_by_hand() -> None:
    """Channels with values 1, 3 and 2, 2: means 2, 2 and deviations 1, 0; mean square 9 / 4."""
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]]])
    _, make = find_router("stage(inputs=pool+std, norm=rms)")
    router: LinearRouter = make(2, 4, 1)  # type: ignore[assignment]
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    assert router(x).tolist()[0] == pytest.approx([2 / 1.5, 2 / 1.5, 1 / 1.5, 0], abs=1e-3)
    _, make = find_router("stage(inputs=pool+std)")
    flat = make(2, 1, -1)(torch.tensor([[1.0, 3.0]]))  # nothing to take a deviation over
    assert flat.tolist() == [[0]]


def test_stopped_gradients_reach_the_router_alone() -> None:
    for how, reaches in (("pass", True), ("stop", False)):
        _, make = find_router(f"node(gradient={how})")
        router: LinearRouter = make(3, 2, 1)  # type: ignore[assignment]
        torch.nn.init.ones_(router.weight)
        x = torch.randn(2, 3, 4, 4, requires_grad=True)
        (router(x) + 0 * x.sum()).sum().backward()
        assert x.grad is not None
        assert bool(x.grad.any()) == reaches
        assert router.weight.grad is not None
        assert router.weight.grad.any()


def test_controls_by_hand() -> None:
    _, make = find_router("tied")
    tied: Any = make(3, 4, 1)
    torch.nn.init.ones_(tied.one.weight)
    x = torch.randn(2, 3, 4, 4)
    sums = x.mean((2, 3)).sum(1)
    torch.testing.assert_close(tied(x), sums[:, None].expand(-1, 4))
    scope, make = find_router("constant")
    assert scope == "stage"
    constant: Any = make(3, 4, 1)
    with torch.no_grad():
        constant.bias.copy_(torch.arange(4.0))
    assert constant(x).tolist() == [[0, 1, 2, 3]] * 2
    assert constant(x.double()).dtype == torch.float64


def test_router_stays_float32_under_autocast_and_in_half() -> None:
    router = LinearRouter(3, 2, 1)
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        assert router(torch.randn(1, 3, 2, 2)).dtype == torch.float32
    assert router.bfloat16()(torch.randn(1, 3, 2, 2).bfloat16()).dtype == torch.float32
    assert router.double()(torch.randn(1, 3, 2, 2).double()).dtype == torch.float64


def test_a_hidden_layer_by_hand() -> None:
    """ReLU(x W1 + b1) W2 + b2 on the pooled channels; zero logits at the start."""
    _, make = find_router("node(2)")
    router: LinearRouter = make(3, 2, 1)  # type: ignore[assignment]
    x = torch.tensor([[1.0, 2.0, 3.0]])[:, :, None, None].expand(1, 3, 2, 2)
    assert router(x).tolist() == [[0, 0]]
    assert router.hidden is not None
    with torch.no_grad():
        router.hidden.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
        router.hidden.bias.copy_(torch.tensor([0.5, 1.0]))
        router.weight.copy_(torch.tensor([[2.0, 5.0], [-1.0, 5.0]]))
        router.bias.copy_(torch.tensor([0.0, 0.25]))
    assert router(x).tolist() == [[3.0, -1.25]]


@pytest.mark.parametrize("text", ["nod", "node(a)", "node(1", "no.de", "stages"])
def test_unknown_routers(text: str) -> None:
    with pytest.raises(InputError, match="node, stage"):
        find_router(text)


def test_temperature_sharpens_and_stays_exact_at_the_start() -> None:
    gate = AnchoredGate([True, False])
    gate.temperature.fill_(0.1)
    assert gate(torch.zeros(1, 2)).tolist() == [[1, 0]]
    assert gate(torch.tensor([[0.05, -0.2]])).tolist()[0] == pytest.approx(
        [1 + math.tanh(0.5), math.tanh(-2)]
    )


def test_a_topology_by_hand() -> None:
    """v0, v1, v2, out. The edges into a vertex are decided at the vertex before it."""
    topology = Topology((0, 0, 1, 0, 1, 2), (1, 2, 2, 3, 3, 3))
    assert topology.num_vertices == 4
    assert [topology.incoming(vertex) for vertex in (1, 2, 3)] == [
        slice(0, 1),
        slice(1, 3),
        slice(3, 6),
    ]
    assert topology.decided_by_column() == {0: [0], 1: [1, 2], 2: [3, 4, 5]}
    assert topology.outgoing() == [[0, 1, 3], [2, 4], [5], []]
    chain = Topology((0, 1), (1, 2))
    assert chain.num_vertices == 3
    assert chain.decided_by_column() == {0: [0], 1: [1]}


def test_settle_equals_the_steps_one_by_one() -> None:
    """By hand on v0, v1, v2, out: v1 closed, so v1 -> v2 and v1 -> out close too; v2 lives by
    v0.
    """
    topology = Topology((0, 0, 1, 0, 1, 2), (1, 2, 2, 3, 3, 3))
    raw = torch.tensor([[0.4, 0.9, 0.8, 0.2, 0.9, 0.3], [0.6, 0.1, 0.2, 0.6, 0.1, 0.9]])
    settled = settle(raw, topology, HALF, False)
    assert settled[0].tolist() == pytest.approx([0, 0.9, 0, 0, 0, 1])
    assert settled[1].tolist() == pytest.approx([0.6, 0, 0, 0.6, 0, 0])
    assert live_vertices(settled != 0, topology).tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]
    assert leads_to_out(settled != 0, topology).tolist() == [[1, 0, 1, 1], [1, 0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_of_weight_one_are_the_backbone_s_own_adds(dtype: torch.dtype) -> None:
    """Rounded after each term, to the bit, with kernels and without: a lifted stage must equal its
    chain of residual adds.
    """
    a, b, c = (torch.randn(2, 1 << 15).to(dtype) for _ in range(3))
    assert torch.equal(weighted_sum([a, b, c], torch.ones(2, 3)), a + b + c)
