"""torch.compile of the whole network, without a graph break: outputs, gates and gradients are those
of the eager form.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kinds import KINDS, converted
from torch import Tensor

from dggraph.errors import InputError
from dggraph.network.gates import Gates
from dggraph.ops import aggregation

# Relative to the largest element. Outputs in float32: the same sums in another order. Gradients in
# float64: in float32 Inductor's were seen to differ by 1e-4, and by 2e-3 where an element falls on
# the other side of a ReLU6's corner.
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-9
OFTEN = ("lifted", "concat", "tokens")
"""Kinds that are trained compiled in each run of the suite; the others are slow."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def close(actual: Tensor, expected: Tensor, tolerance: float = OUTPUT_TOLERANCE) -> bool:
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1e-6))


def step(net: Any, forward: Any, x: Tensor) -> tuple[Any, list[Tensor]]:
    """One training step's output, and the gradients of the input and of all parameters; the loss
    reads both kinds of gates.
    """
    x = x.clone().requires_grad_()
    output, gates = forward(x, return_gates=True)
    loss = output.square().mean()
    for weights, raw in zip(gates.weights.values(), gates.raw.values(), strict=True):
        loss = loss + 0.1 * weights.square().sum() + 0.1 * raw.square().sum()
    parameters = [p for p in net.parameters() if p.requires_grad]
    return (output, gates), list(torch.autograd.grad(loss, [x, *parameters]))


@pytest.mark.parametrize(
    ("kind", "router"), [*((kind, "stage") for kind in KINDS), ("lifted", "node")]
)
def test_inference_is_the_eager_one(kind: str, router: str) -> None:
    net = converted(kind, router)
    # Raw weights of edges that leave a dead node mean nothing, and the sparse executor says 0
    # there.
    net.executor = "dense"
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected, gates = net(x, return_gates=True)
        output, compiled_gates = compiled(x, return_gates=True)
        assert close(output, expected)
        assert isinstance(compiled_gates, Gates)
        assert compiled_gates.table == net.macs_table
        for stage, weights in gates.weights.items():
            assert torch.equal(compiled_gates.weights[stage] != 0, weights != 0)
            assert close(compiled_gates.weights[stage], weights)
            assert close(compiled_gates.raw[stage], gates.raw[stage])
            assert torch.equal(compiled_gates.thresholds[stage], gates.thresholds[stage])
        assert (torch.cat(list(gates.weights.values()), 1) == 0).any()


@pytest.mark.parametrize(
    ("kind", "router"),
    [
        *(
            pytest.param(kind, "node", marks=() if kind in OFTEN else pytest.mark.slow)
            for kind in KINDS
        ),
        ("lifted", "stage"),
    ],
)
def test_training_has_the_eager_gradients(kind: str, router: str) -> None:
    net = converted(kind, router).train().double()
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    (expected, gates), expected_gradients = step(twin, twin, x)
    (output, compiled_gates), gradients = step(net, compiled, x)
    assert close(output, expected)
    assert all(
        torch.equal(compiled_gates.weights[stage] != 0, weights != 0)
        for stage, weights in gates.weights.items()
    )
    # Of all gradients, not of each: that of a bias in front of a norm is rounding alone.
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients[1:])
    assert close(gradients[0], expected_gradients[0], GRADIENT_TOLERANCE)
    for actual, wanted in zip(gradients[1:], expected_gradients[1:], strict=True):
        assert (actual - wanted).abs().max() <= GRADIENT_TOLERANCE * scale
    for (name, buffer), other in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(buffer, other, rtol=1e-5, atol=1e-6), name


def test_plain_output_without_gates() -> None:
    net = converted("kept")
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert close(compiled(x), net(x))
    net.train()
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_one_graph_serves_every_batch_size() -> None:
    net = converted("lifted")
    graphs: list[Any] = []

    def count(graph_module: Any, _inputs: Any) -> Any:
        graphs.append(graph_module)
        return graph_module.forward

    compiled = torch.compile(net, fullgraph=True, backend=count, dynamic=True)
    with torch.no_grad():
        for size in (4, 3, 7):
            x = torch.randn(size, 3, 16, 16)
            assert close(compiled(x), net(x))
    assert len(graphs) == 1


def test_inductor() -> None:
    """Code made for this machine, gates and all: inference in float32, a training step in
    float64.
    """
    net = converted("lifted")
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert close(torch.compile(net, fullgraph=True, dynamic=False)(x), net(x))
    net, x = net.train().double(), x.double()
    twin = copy.deepcopy(net)
    (expected, gates), expected_gradients = step(twin, twin, x)
    (output, compiled_gates), gradients = step(
        net, torch.compile(net, fullgraph=True, dynamic=False), x
    )
    assert close(output, expected)
    assert all(
        torch.equal(compiled_gates.weights[stage] != 0, weights != 0)
        for stage, weights in gates.weights.items()
    )
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert (actual - wanted).abs().max() <= GRADIENT_TOLERANCE * scale


def test_the_plain_expression_is_what_compilers_see(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: Any) -> Any:
        raise AssertionError("the fast path was traced")

    net, x = converted("kept").train(), torch.randn(2, 3, 16, 16)
    expected = copy.deepcopy(net)(x)
    monkeypatch.setattr(aggregation._Aggregate, "apply", never)
    monkeypatch.setattr(aggregation._Share, "apply", never)
    found = torch.compile(net, fullgraph=True, backend="eager", dynamic=False)(x)
    assert close(found, expected)


def test_a_network_compiled_in_place_still_copies_and_refuses_wrong_input() -> None:
    net = converted("kept")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        net.compile(fullgraph=True, backend="eager", dynamic=False)
        assert close(net(x), expected)
        assert close(copy.deepcopy(net)(x), expected)
        with pytest.raises(
            (InputError, torch._dynamo.exc.Unsupported), match="takes a batch of images"
        ):
            net(x[0])
