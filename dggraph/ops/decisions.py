"""A router and its gate as one function in as few steps as possible.

Called as modules they take 15 Python calls and some 40 microseconds for each stage or node. The
arithmetic takes a third of that. `bound_decision` is equal to the modules to the bit. Decisions
that are prepared for inference agree to about 1e-6: nothing is computed where it cannot depend on
the image, and one image takes two products of a matrix and a vector, then floats.
"""

from collections.abc import Callable
from functools import partial
from math import exp, tanh
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, is_autocast_enabled, nn
from torch.nn.functional import linear

from dggraph.ops import kernels
from dggraph.ops.gating import (
    SCRATCH_OFFSET,
    AnchoredGate,
    ScaledGate,
    ShrinkGate,
    SigmoidGate,
    SoftmaxGate,
)
from dggraph.ops.granularity import PARTS_GATES
from dggraph.ops.routing import ConstantRouter, LinearRouter

Decide = Callable[[Tensor], Tensor]
"""Takes features (B, ...) and returns the raw weights of the edges it decides, (B, E, ...)."""

DecideOne = Callable[[Tensor], list[float]]
"""Takes the features of one image, and returns the raw weights of the edges it decides, (E,)."""


class Forms(NamedTuple):
    """What a program has beside `bound_decision`; each returns None for unknown classes."""

    for_one: Callable[[nn.Module, nn.Module], DecideOne | None]
    constant: Callable[[nn.Module, nn.Module], list[float] | None]
    """What every image gets, if it is the same."""


def called_decision(router: nn.Module, gate: nn.Module) -> Decide:
    """Return `gate(router(features))` as calls of the modules, whatever they are."""

    def decide(features: Tensor) -> Tensor:
        weights_BE: Tensor = gate(router(features))
        return weights_BE

    return decide


def bound_decision(router: nn.Module, gate: nn.Module) -> Decide | None:
    """Return `gate(router(features))` as ops on the present weights, or None for other modules."""
    finish, decide = _finish(gate), called_decision(router, gate)
    if finish is None:
        return None
    if _is_constant(router):
        logits_E = router.bias

        def repeat_in_float32(features: Tensor) -> Tensor:
            if features.dtype is torch.float64:
                return decide(features)
            return finish(logits_E.expand(len(features), -1).clone())

        return repeat_in_float32
    if not _is_plain(router):
        return None
    weight, bias, axes = router.weight, router.bias, _axes(router)

    def decide_in_float32(features: Tensor) -> Tensor:
        if _is_map(features):
            return finish(linear(features.mean(axes), weight, bias))
        return decide(features)

    return decide_in_float32


def constant_row(router: nn.Module, gate: nn.Module) -> list[float] | None:
    """Return what the gate gives every image, (E,), or None if that depends on the image.

    A router that was never trained has no weights but its bias. Edges with several weights have no
    such row.
    """
    finish = None if isinstance(gate, PARTS_GATES) else _finish(gate)
    is_untrained = _is_plain(router) and not router.weight.any()
    if finish is None or not (is_untrained or _is_constant(router)):
        return None
    bias = router.bias
    assert isinstance(bias, Tensor)
    row: list[float] = finish(bias.detach().clone()[None]).tolist()[0]
    return row


def decision_for_one(router: nn.Module, gate: nn.Module) -> DecideOne | None:
    """Return `gate(router(features))` for one image as floats, or None for other modules.

    It is for the CPU alone: a GPU would be waited for at each number.
    """
    finish, decide = _finish_float(gate), bound_decision(router, gate)
    if not _is_plain(router) or router.weight.is_cuda or finish is None or decide is None:
        return None
    weight, bias, is_first = router.weight, router.bias, router.channel_axis == 1
    num_channels = weight.shape[1]
    averages: dict[int, Tensor] = {}
    """For each number of pixels, the vector that takes their mean."""

    def decide_one(features: Tensor) -> list[float]:
        is_contiguous = features.is_contiguous()
        if not _is_map(features) or not (
            is_contiguous
            or (is_first and features.is_contiguous(memory_format=torch.channels_last))
        ):
            row: list[float] = decide(features).tolist()[0]
            return row
        if kernels.load():
            return finish(kernels.pooled_logits(features, weight, bias, axis=1 if is_first else 3))
        count = features[0].numel() // num_channels
        if is_first and is_contiguous:
            pixels = features.view(num_channels, count)
        else:  # channels are last in memory
            pixels = features.as_strided((num_channels, count), (1, num_channels))
        if count not in averages:
            averages[count] = pixels.new_full((count,), 1 / count)
        return finish(torch.addmv(bias, weight, torch.mv(pixels, averages[count])).tolist())

    return decide_one


def _is_plain(router: nn.Module) -> TypeGuard[LinearRouter]:
    return (
        type(router) is LinearRouter
        and router.hidden is None
        and (router.inputs, router.norm) == ("pool", "none")
        and router.weight.dtype == torch.float32
    )


def _is_constant(router: nn.Module) -> TypeGuard[ConstantRouter]:
    return type(router) is ConstantRouter and router.bias.dtype == torch.float32


def _axes(router: LinearRouter) -> tuple[int, int]:
    return (2, 3) if router.channel_axis == 1 else (1, 2)


def _is_map(features: Tensor) -> bool:
    """Whether these are feature maps in float32, outside autocast."""
    return (
        features.dtype is torch.float32
        and features.ndim == 4
        and not is_autocast_enabled(features.device.type)
    )


def _finish(gate: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return what `gate` does to logits (B, E), in place where it can be."""
    if type(gate) is AnchoredGate or type(gate) is ShrinkGate:
        anchor_E, divisor = gate.anchor_E, gate.temperature
        return lambda logits_BE: logits_BE.div_(divisor).tanh_().add_(anchor_E)
    if type(gate) is SigmoidGate:
        divisor = gate.temperature
        return lambda logits_BE: logits_BE.div_(divisor).add_(SCRATCH_OFFSET).sigmoid_()
    if type(gate) is ScaledGate or type(gate) is SoftmaxGate:
        return gate.forward
    if isinstance(gate, PARTS_GATES):
        inner = _finish(gate.gate)
        return None if inner is None else partial(gate.weigh, inner)
    return None


def _finish_float(gate: nn.Module) -> Callable[[list[float]], list[float]] | None:
    """Return what `gate` does to the logits of one image, (E,)."""
    if type(gate) is SigmoidGate:
        temperature = gate.temperature

        def sigmoid(logits: list[float]) -> list[float]:
            scale = 0.5 / temperature.item()
            return [0.5 + 0.5 * tanh(scale * logit + 0.5 * SCRATCH_OFFSET) for logit in logits]

        return sigmoid
    if type(gate) is SoftmaxGate:
        return _finish_softmax(gate)
    if type(gate) not in (AnchoredGate, ShrinkGate, ScaledGate):
        return None
    assert isinstance(gate, AnchoredGate)
    anchors, divisor = gate.anchor_E.tolist(), gate.temperature
    most = 1.0 if not isinstance(gate, ScaledGate) else gate.scale(torch.float64).item()

    def anchored(logits: list[float]) -> list[float]:
        scale = 1 / divisor.item()
        return [
            anchor + most * tanh(scale * logit)
            for anchor, logit in zip(anchors, logits, strict=True)
        ]

    return anchored


def _finish_softmax(gate: SoftmaxGate) -> Callable[[list[float]], list[float]]:
    anchors, divisor, sizes = gate.anchor_E.tolist(), gate.temperature, gate.num_sources

    def softmax(logits: list[float]) -> list[float]:
        scale, row = 1 / divisor.item(), list[float]()
        for size in sizes:
            own = [scale * logit for logit in logits[len(row) : len(row) + size]]
            most = max(0.0, *own)
            shares, null = [exp(logit - most) for logit in own], exp(-most)
            total = sum(shares) + null
            row += [(share - null) / total for share in shares]
        return [anchor + move for anchor, move in zip(anchors, row, strict=True)]

    return softmax


EXACT = Forms(lambda _router, _gate: None, lambda _router, _gate: None)
"""Equal to the modules to the bit; weights may change in place."""
PREPARED = Forms(decision_for_one, constant_row)
"""Equal to about 1e-6, for weights that stay as they are."""
