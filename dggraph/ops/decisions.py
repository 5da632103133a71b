"""A router and its gate as one function in as few steps as possible, equal to the bit.

Called as modules they take 15 Python calls and some 40 microseconds for each stage or node. The
arithmetic takes a third of that.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dggraph.ops.gating import SCRATCH_OFFSET, AnchoredGate, SigmoidGate
from dggraph.ops.routing import LinearRouter

Decide = Callable[[Tensor], Tensor]
"""Takes features (B, ...) and returns the raw weights of the edges it decides, (B, E)."""


def called_decision(router: nn.Module, gate: nn.Module) -> Decide:
    """Return `gate(router(features))` as calls of the modules, whatever they are."""

    def decide(features: Tensor) -> Tensor:
        weights_BE: Tensor = gate(router(features))
        return weights_BE

    return decide


def bound_decision(router: nn.Module, gate: nn.Module) -> Decide | None:
    """Return `gate(router(features))` as ops on the present weights, or None for other modules."""
    finish = _finish(gate)
    if type(router) is not LinearRouter or finish is None:
        return None
    if router.hidden is not None or router.weight.dtype != torch.float32:
        return None
    weight, bias = router.weight, router.bias
    axes = (2, 3) if router.channel_axis == 1 else (1, 2)
    decide = called_decision(router, gate)

    def decide_in_float32(features: Tensor) -> Tensor:
        if (
            features.dtype is not torch.float32
            or features.ndim != 4
            or torch.is_autocast_enabled(features.device.type)
        ):
            return decide(features)
        return finish(functional.linear(features.mean(axes), weight, bias))

    return decide_in_float32


def _finish(gate: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return what `gate` does to logits (B, E), in place."""
    if type(gate) is AnchoredGate:
        anchor_E, divisor = gate.anchor_E, gate.temperature
        return lambda logits_BE: logits_BE.div_(divisor).tanh_().add_(anchor_E)
    if type(gate) is SigmoidGate:
        divisor = gate.temperature
        return lambda logits_BE: logits_BE.div_(divisor).add_(SCRATCH_OFFSET).sigmoid_()
    return None
