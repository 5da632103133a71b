"""Gates, routers and aggregation against plain loops and hand-computed numbers."""

import math

import pytest
import torch
from torch import Tensor

from dggraph.errors import InputError
from dggraph.ops.aggregation import adapt, aggregate, concatenate
from dggraph.ops.gating import AnchoredGate, SigmoidGate, column
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
