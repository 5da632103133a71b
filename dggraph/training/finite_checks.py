"""Nothing that is not finite reaches the weights, and a GPU is not waited for in every step.

On the CPU a step is checked before it is taken. On a GPU, reading a number waits for all work
before it, so that the host cannot prepare the next step meanwhile. There:

1. The loss and the norm of the gradients stay on the device. If one of them is not finite, the
   device itself sets all gradients to 0, so the weights stay finite.
2. Both numbers are copied to the host behind the step, and read when the next step has been queued.
   They are there by then, and the run ends one step late.
3. Before anything is logged, evaluated or saved, the newest numbers are waited for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dggraph.errors import TrainingError
from dggraph.system.sharding import local_tensors
from dggraph.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Unread:
    """The loss and the norm of the gradients of one step, on their way to the host."""

    step: int
    numbers: Tensor
    arrival: torch.cuda.Event | None
    """None on the CPU, where they are there."""

    def refuse(self, config: TrainConfig) -> None:
        """Wait for the numbers.

        Raises:
            TrainingError: one of them is not finite.
        """
        if self.arrival is not None:
            self.arrival.synchronize()
        loss, norm = self.numbers.tolist()
        refuse_loss(loss, self.step, config)
        refuse_norm(norm, self.step, config)


def reads_later(device: torch.device) -> bool:
    """Whether reading a number at once would wait for `device`."""
    return device.type == "cuda"


def guard_(gradients: Sequence[Tensor], loss: Tensor, norm: Tensor, step: int) -> Unread:
    """Set `gradients` to 0 if `loss` or `norm` (0-d) is not finite, without a wait. In place."""
    numbers = torch.stack([loss.float(), norm.float()])
    is_broken = ~numbers.isfinite().all()
    for gradient in local_tensors(gradients):
        gradient.masked_fill_(is_broken, 0.0)  # a product with 0 would keep NaN
    if not numbers.is_cuda:
        return Unread(step, numbers, None)
    pinned = torch.empty(2, dtype=numbers.dtype, pin_memory=True)
    pinned.copy_(numbers, non_blocking=True)
    return Unread(step, pinned, torch.cuda.current_stream(numbers.device).record_event())


def refuse_loss(loss: float, step: int, config: TrainConfig) -> None:
    """Raise a TrainingError if `loss` is not finite."""
    if not math.isfinite(loss):
        raise _not_finite(config, f"the loss of step {step} is {loss}")


def refuse_norm(norm: float, step: int, config: TrainConfig) -> None:
    """Raise a TrainingError if `norm`, that of all gradients, is not finite."""
    if not math.isfinite(norm):
        raise _not_finite(config, f"a gradient of step {step} is not finite")


def _not_finite(config: TrainConfig, what: str) -> TrainingError:
    other = {
        "none": "",
        "float16": ", or use amp = 'bfloat16' instead of float16",
        "bfloat16": ", or leave amp out",
    }[config.amp]
    return TrainingError(
        f"{what}, so no step was taken with it. Lower lr, clip gradients (clip_grad){other}; the"
        " last checkpoint is still valid."
    )
