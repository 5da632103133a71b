"""Where a model computes, and in which type."""

from itertools import chain

import torch
from torch import Tensor, nn


def first_weight(model: nn.Module) -> Tensor:
    """The first floating weight of `model`, or else buffer, whose device and type its inputs take;
    a number on the CPU where there is none.
    """
    tensors = (tensor for tensor in chain(model.parameters(), model.buffers()))
    return next(
        (tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros((), device="cpu")
    )
