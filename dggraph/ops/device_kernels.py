"""Whether the Triton kernels may be used, and calls into them: the GPU's counterpart of `kernels`.

They serve NVIDIA GPUs of compute capability 8.0 (Ampere) or later, in float32, bfloat16 and
float16. Triton comes with torch's builds for CUDA; it compiles a kernel at its first call and keeps
it in its own cache. Everything else runs in plain torch, which reads memory once per source and
writes every term.

Shape suffixes: R rows of the result, E edges.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPABILITY = (8, 0)


def is_usable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels support `tensors`: one dtype, one GPU, not traced."""
    first = tensors[0]
    if first.device.type != "cuda" or first.dtype not in DTYPES:
        return False
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or torch.compiler.is_compiling():
        return False
    is_uniform = all(
        type(one) is Tensor and one.dtype == first.dtype and one.device == first.device
        for one in tensors
    )
    return is_uniform and not why_not(first.device)


def sum_rows(features: Sequence[Tensor], places_RE: Tensor | None, weights_RE: Tensor) -> Tensor:
    """Compute `rows.sum_rows` for usable features, one per edge and none of them None.

    Places and weights are tensors on the same GPU, so that nothing waits for the host. The result
    is always a fresh tensor.
    """
    from dggraph.ops import triton_ops

    with torch.cuda.device(features[0].device):
        summed: Tensor = triton_ops.sum_rows(features, places_RE, weights_RE)
    return summed


def inner_products(features: Sequence[Tensor], grad: Tensor) -> Tensor:
    """Compute `weighted_sum.inner_products` for usable tensors."""
    from dggraph.ops import triton_ops

    with torch.cuda.device(grad.device):
        products: Tensor = triton_ops.inner_products(features, grad)
    return products


def sum_and_products(
    grads: Sequence[Tensor], weights_BE: Tensor, feature: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `weighted_sum.sum_and_products` for usable tensors."""
    from dggraph.ops import triton_ops

    with torch.cuda.device(feature.device):
        total, products = triton_ops.sum_and_products(grads, weights_BE, feature)
    return total, products


@cache
def why_not(device: torch.device) -> str:
    """Return an empty string if `device` is a GPU that runs the kernels, else the reason."""
    if os.environ.get("DGGRAPH_KERNELS") == "0":
        return "turned off by DGGRAPH_KERNELS=0"
    if torch.version.cuda is None:
        return "not made for this build of torch, which is not for CUDA"
    if find_spec("triton") is None:
        return "off: triton is not installed (pip install triton)"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return f"off: compute capability {found[0]}.{found[1]} is below 8.0"
    return ""
