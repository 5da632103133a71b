"""Small copies between host and GPU that do not stop either.

A plain copy of decisions, indices or constants makes the host wait until the GPU has done all work
before it, even where nothing depends on the copy. Pinned memory lets the GPU copy by itself.

What routers decide is copied as it is, four bytes an edge: 46 KB for 256 images and 45 edges, which
is less than the time of one of the kernels that packing bits on the device would need. So the host
decides from the same numbers, by the same code, as on the CPU.
"""

from collections.abc import MutableMapping, Sequence
from math import prod
from operator import methodcaller
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Array = npt.NDArray[Any]

ALIGNMENT = 16
"""Bytes; the kernels load as many at once."""

_numbers: MutableMapping[Tensor, tuple[tuple[int, int], float]] = WeakTensorKeyDictionary()
"""What `number` has read: for each tensor, its version and address, and its value."""


def to_host(*tensors: Tensor) -> list[Array]:
    """Return tensors as arrays; from a GPU in one copy, which is waited for once.

    bfloat16 becomes float32, since numpy has no bfloat16. Tensors that come together are converted
    to their common type.
    """
    values = [one.detach() for one in tensors]
    values = [one.float() if one.dtype == torch.bfloat16 else one for one in values]
    if any(one.device.type != "cuda" for one in values):
        return [one.numpy(force=True) for one in values]
    flat = join(values)
    pinned = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    pinned.copy_(flat, non_blocking=True)
    torch.cuda.current_stream(flat.device).record_event().synchronize()
    return split(pinned.numpy(), [tuple(one.shape) for one in values])


def to_lists(*tensors: Tensor) -> list[Any]:
    """Return tensors as lists of numbers, as `tolist` does; from a GPU in one copy."""
    return list(map(methodcaller("tolist"), to_host(*tensors) if tensors[0].is_cuda else tensors))


def number(value: Tensor) -> float:
    """Return the value of a 0-d tensor.

    On a GPU it is read again once the tensor has changed in place (not through its `.data`).
    """
    if not value.is_cuda or value.is_inference():
        found: float = value.item()
        return found
    state = value._version, value.data_ptr()
    known = _numbers.get(value)
    if known is None or known[0] != state:
        _numbers[value] = known = (state, float(to_host(value)[0]))
    return known[1]


def join(values: Sequence[Tensor]) -> Tensor:
    """Return the elements of `values`, one after the other."""
    rows = [one.reshape(-1) for one in values]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def split(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Return views of `flat` in the given shapes, the inverse of `join`."""
    arrays: list[Array] = []
    start = 0
    for shape in shapes:
        arrays.append(flat[start : start + prod(shape)].reshape(shape))
        start += prod(shape)
    return arrays


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to `device` without waiting for the copy."""
    is_real = type(values) is Tensor and not torch.compiler.is_compiling()
    if device.type == "cuda" != values.device.type and is_real and torch.cuda.is_available():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def upload(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on `device`; to a GPU all go in one copy, which is not waited for.

    On the CPU the tensors share the arrays' memory.
    """
    values = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    if device.type == "cpu":
        return values
    buffer = to_device(pack(values), device)
    return unpack(buffer, values)


def pack(values: Sequence[Tensor]) -> Tensor:
    """Return the bytes of `values`, one after the other, each from a multiple of ALIGNMENT on."""
    parts: list[Tensor] = []
    for one in values:
        parts.append(one.reshape(-1).view(torch.uint8))
        parts.append(torch.zeros(-one.nbytes % ALIGNMENT, dtype=torch.uint8, device="cpu"))
    return torch.cat(parts)


def unpack(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of `buffer` with the types and shapes of `like`, the inverse of `pack`."""
    found, start = list[Tensor](), 0
    for one in like:
        found.append(buffer[start : start + one.nbytes].view(one.dtype).view(one.shape))
        start += one.nbytes + -one.nbytes % ALIGNMENT
    return found


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """Return numbers as a tensor with the type and the device of `like`."""
    return to_device(torch.tensor(values, dtype=like.dtype, device="cpu"), like.device)
