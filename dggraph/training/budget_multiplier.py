"""How hard training presses towards a budget, adapted until the budget is met.

A budget is a constraint on the mean MACs ratio. The weight that its loss needs depends on the data,
the rates and the length of the run, over orders of magnitude, so training finds it: a Lagrange
multiplier, by exponentiated gradient ascent. With the excess, the mean MACs ratio minus the target:

1. the loss is that of an augmented Lagrangian, `multiplier * excess + stiffness / 2 * excess ** 2`.
   The first term presses down at any excess. The second one damps, and presses up below the target.
   Its stiffness is `SHARPNESS * multiplier`, but at least `STIFFNESS`: edges close long after the
   multiplier began to press, and then many at once, which has to be made good however small the
   multiplier is;
2. after each step the multiplier changes by the factor exp(`SPEED` * excess / steps of the run). So
   it grows as long as the ratio is above the target, whatever the task's loss pulls at, and falls
   below it;
3. while the threshold rises nothing can close yet, which would wind the multiplier up. So the
   target falls from 1 to the budget over the same share of the run.
"""

import torch
from torch import Tensor

from dggraph.training.config import TrainConfig

LOWEST, HIGHEST = 0.1, 10.0
"""It starts at the lowest. Above the highest, a budget that cannot be met, for example because
routers learn too slowly, would only spoil the weights.
"""
SPEED = 100.0
SHARPNESS = 20.0
"""The pull of a large multiplier falls to a fifth from 0.2 above the target to the target, and to 0
at 0.05 below it.
"""
STIFFNESS = 10.0
"""The pull of `losses.budget` with a factor of 5."""


def first_multiplier(config: TrainConfig, device: torch.device) -> Tensor | None:
    """Return the multiplier at the start of a run, 0-d float64.

    None if the run has no budget, or the weight is given.
    """
    if config.budget is None or config.budget_weight is not None:
        return None
    return torch.tensor(LOWEST, dtype=torch.float64, device=device)


def press(excess: Tensor, multiplier: Tensor) -> Tensor:
    """Return the loss, 0-d float64, for `excess`, a batch's mean MACs ratio minus the target."""
    stiffness = (SHARPNESS * multiplier).clamp(min=STIFFNESS)
    return multiplier * excess + stiffness / 2 * torch.square(excess)


def adapt_(multiplier: Tensor, excess: Tensor, num_steps: int) -> None:
    """Adapt `multiplier` after a step of a run of `num_steps`, without waiting for the device.

    Every process must pass the mean excess of all.
    """
    multiplier.mul_(torch.exp(SPEED / num_steps * excess)).clamp_(LOWEST, HIGHEST)
