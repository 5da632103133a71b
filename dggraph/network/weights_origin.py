"""The origin of a network's weights, with a check whether random weights have changed.

Random weights may be replaced in ways that the network does not notice (`load_state_dict`, an
optimiser). One value of each weight is therefore kept, and compared when the origin is requested.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dggraph.models.origins import GIVEN, RANDOM

TOLERANCE = 0.004
"""Relative tolerance: a cast to bfloat16 changes weights less, and a few training steps more."""


class Origin(NamedTuple):
    """The origin of the weights at one moment."""

    told: str
    probe: Tensor | None
    """(W,) float64, one value per weight matrix of the backbone; None if no check is needed."""


def origin_of(told: str, lowered: nn.Module) -> Origin:
    """Return the origin `told`, with a probe of the weights if they are random."""
    return Origin(told, _probe(lowered) if told == RANDOM else None)


def origin_now(origin: Origin, lowered: nn.Module) -> str:
    """Return the current origin: given by the caller, if random weights have changed."""
    if origin.probe is None:
        return origin.told
    now = _probe(lowered)
    is_same = now.shape == origin.probe.shape and torch.allclose(
        now, origin.probe, rtol=TOLERANCE, atol=1e-6, equal_nan=True
    )
    return origin.told if is_same else GIVEN


def _probe(lowered: nn.Module) -> Tensor:
    values = [
        parameter.detach()[(0,) * parameter.ndim].to("cpu", torch.float64)
        for name, parameter in lowered.named_parameters()
        if parameter.ndim > 1 and not name.startswith("dg_") and parameter.is_floating_point()
    ]
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64, device="cpu")
