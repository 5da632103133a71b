"""The device and dtype of a model."""

from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch
from torch import Tensor, nn


def first_weight(model: nn.Module) -> Tensor:
    """Return the first floating-point weight of `model`, or else its first floating-point buffer.

    Inputs of the model take its device and dtype. A model with neither gives a 0-d tensor on the
    CPU.
    """
    tensors = (tensor for tensor in chain(model.parameters(), model.buffers()))
    return next(
        (tensor for tensor in tensors if tensor.is_floating_point()), torch.zeros((), device="cpu")
    )


def channels_last_(model: nn.Module) -> None:
    """Store the weights of 2-D convolutions with their channels last, in place.

    `Module.to(memory_format=...)` fails on tensors with five axes, such as several kernels of one
    layer.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of a batch to `device`; the host waits for a GPU only if it is not pinned."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def outside_autocast(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off, so that nothing is rounded to 16 bits."""
    # "meta" has no autocast, and torch.compile of torch 2.10 cannot trace `is_autocast_available`
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
