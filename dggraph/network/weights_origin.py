"""Whether a network still has the weights that it was built with.

Where they were random, whatever loads or trains them afterwards makes them something else, by ways
that nobody tells us of (`load_state_dict`, an optimiser). So one value of each weight is kept, and
compared when the question is asked.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dggraph.models.origins import GIVEN, RANDOM

TOLERANCE = 0.004
"""Relative; weights cast to bfloat16 are the same, and those trained for a few steps are not."""


class Origin(NamedTuple):
    """Where weights come from, as was known at one moment."""

    told: str
    probe: Tensor | None
    """(W,) float64, one value of each weight matrix of the backbone; None where nothing is to be
    watched.
    """


def origin_of(told: str, lowered: nn.Module) -> Origin:
    """What is to be kept of a network whose weights come from `told` now."""
    return Origin(told, _probe(lowered) if told == RANDOM else None)


def origin_now(origin: Origin, lowered: nn.Module) -> str:
    """Where the weights come from; given by the caller, once random ones have changed."""
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
