"""Decisions as functions: what the modules give, to the bit where that is promised."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dggraph.ops.decisions import bound_decision, constant_row, decision_for_one
from dggraph.ops.gating import AnchoredGate, ScaledGate, ShrinkGate, SigmoidGate, SoftmaxGate
from dggraph.ops.granularity import Parts
from dggraph.ops.routing import ConstantRouter, LinearRouter

STATIC = [True, False, False, True, False]
GATES: dict[str, Callable[[list[bool]], nn.Module]] = {
    "anchored": AnchoredGate,
    "shrink": ShrinkGate,
    "scaled": ScaledGate,
    "softmax": lambda static: SoftmaxGate(static, [1, 2, 2, 3, 3]),
    "sigmoid": SigmoidGate,
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
}


def pair(gate: str, axis: int = 1, *, is_trained: bool = True) -> tuple[LinearRouter, nn.Module]:
    """A router and its gate."""
    torch.manual_seed(0)
    router, gating = LinearRouter(24, len(STATIC), axis), GATES[gate](STATIC)
    with torch.no_grad():
        router.bias.normal_()
        if is_trained:
            router.weight.normal_(std=0.5)
        gating.temperature.fill_(0.7)
    return router.requires_grad_(False), gating


def features(axis: int, num_images: int, layout: str) -> Tensor:
    shape = (num_images, 24, 5, 7) if axis == 1 else (num_images, 5, 7, 24)
    torch.manual_seed(1)
    return LAYOUTS[layout](torch.randn(shape))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bound_is_equal_to_the_modules(gate: str, axis: int, num_images: int, layout: str) -> None:
    router, gating = pair(gate, axis)
    decide = bound_decision(router, gating)
    assert decide is not None
    x = features(axis, num_images, layout)
    before = x.clone()
    for _ in range(2):
        assert torch.equal(decide(x), gating(router(x)))
        router.weight.mul_(0.5)  # in place
        gating.temperature.mul_(0.5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("num_images", [1, 3])
def test_gates_of_several_weights_are_equal_to_the_modules(gate: str, num_images: int) -> None:
    """Routers of groups and channels have one logit for each; those of pixels are only called."""
    _, inner = pair(gate)
    for granularity in (4, "channel"):
        parts = Parts(granularity, (24, 5, 7), 0)  # type: ignore[arg-type]
        router, gating = LinearRouter(24, len(STATIC) * parts.num_groups, 1), parts.around(inner)
        nn.init.normal_(router.weight, std=0.5)
        router.requires_grad_(False)
        decide = bound_decision(router, gating)
        assert decide is not None
        assert decision_for_one(router, gating) is None
        assert constant_row(router, gating) is None
        x = features(1, num_images, "contiguous")
        assert decide(x).shape == (num_images, len(STATIC), 24, 1, 1)
        assert torch.equal(decide(x), gating(router(x)))
        router.weight.zero_()
        assert constant_row(router, gating) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_those_of_the_modules(dtype: torch.dtype) -> None:
    router, gating = pair("anchored")
    decide, one = bound_decision(router, gating), decision_for_one(router, gating)
    assert decide is not None
    assert one is not None
    x = features(1, 1, "contiguous").to(dtype)
    assert torch.equal(decide(x), gating(router(x)))
    assert one(x) == gating(router(x)).tolist()[0]
    tokens = x.flatten(2).transpose(1, 2)
    router.channel_axis = -1
    twin = bound_decision(router, gating)
    assert twin is not None
    assert torch.equal(twin(tokens), gating(router(tokens)))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_cast", [False, True])
def test_one_image_as_floats(gate: str, axis: int, layout: str, is_cast: bool) -> None:
    router, gating = pair(gate, axis)
    one = decision_for_one(router, gating)
    assert one is not None
    x = features(axis, 1, layout)
    with torch.autocast("cpu", torch.bfloat16) if is_cast else nullcontext():
        for _ in range(2):
            found = torch.tensor([one(x)])
            torch.testing.assert_close(found, gating(router(x)), rtol=0, atol=2e-6)
            gating.temperature.mul_(0.5)


def test_what_depends_on_no_image_is_constant() -> None:
    router, gating = pair("anchored", is_trained=False)
    found = constant_row(router, gating)
    assert found == gating(router(features(1, 1, "contiguous"))).tolist()[0]
    router.weight[2, 3] = 1e-20
    assert constant_row(router, gating) is None


@pytest.mark.parametrize("gate", GATES)
def test_constant_routers_are_constant_rows(gate: str) -> None:
    router, (_, gating) = ConstantRouter(24, len(STATIC), 1), pair(gate)
    torch.nn.init.normal_(router.bias)
    router.requires_grad_(False)
    x, decide = features(1, 3, "contiguous"), bound_decision(router, gating)
    assert decide is not None
    assert constant_row(router, gating) == gating(router(x[:1])).tolist()[0]
    for _ in range(2):
        for given in (x, x.double(), x.bfloat16()):
            assert torch.equal(decide(given), gating(router(given)))
        router.bias.mul_(0.5)  # in place


class Doubled(LinearRouter):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def half_precision(router: LinearRouter) -> LinearRouter:
    return copy.deepcopy(router).bfloat16()


@pytest.mark.parametrize(
    "change",
    [
        lambda router, gate: (Doubled(24, len(STATIC), 1), gate),
        lambda router, gate: (LinearRouter(24, len(STATIC), 1, 8), gate),
        lambda router, gate: (LinearRouter(24, len(STATIC), 1, inputs="pool+std"), gate),
        lambda router, gate: (LinearRouter(24, len(STATIC), 1, norm="rms"), gate),
        lambda router, gate: (half_precision(router), gate),
        lambda router, gate: (router, nn.Sigmoid()),
    ],
)
def test_other_modules_have_no_such_form(change: Any) -> None:
    router, gate = change(*pair("anchored"))
    assert bound_decision(router, gate) is None
    assert decision_for_one(router, gate) is None
    assert constant_row(router, gate) is None
