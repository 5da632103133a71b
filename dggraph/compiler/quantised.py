"""FLOPs of quantised layers, in the form that `torch.utils.flop_counter` takes.

torch has no formulas for them and would count 0.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

_LINEARS = (
    "linear_dynamic",
    "linear_relu_dynamic",
    "linear_dynamic_fp16",
    "linear_relu_dynamic_fp16",
    "linear",
    "linear_relu",
)
_CONVOLUTIONS = (
    *(f"conv{axes}d{rest}" for axes in (1, 2, 3) for rest in ("", "_relu", "_dynamic")),
    "conv2d_add", "conv2d_add_relu",
)  # fmt: skip
_PRODUCTS = ("_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm", "_weight_int4pack_mm_for_cpu")


def _flops_of_linear(input_shape: Sequence[int], *_rest: Any, out_shape: Sequence[int]) -> int:
    return 2 * prod(out_shape) * input_shape[-1]


def _flops_of_convolution(*arguments: Any, out_shape: Sequence[int], **_rest: Any) -> int:
    packed = next(argument for argument in arguments if hasattr(argument, "unpack"))
    weight, _bias = packed.unpack()
    return int(2 * prod(out_shape) * prod(weight.shape[1:]))


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return a formula for each op that this build of torch has."""
    formulas: dict[Any, Callable[..., int]] = {}
    for library, names, formula in (
        (torch.ops.quantized, _LINEARS, _flops_of_linear),
        (torch.ops.quantized, _CONVOLUTIONS, _flops_of_convolution),
        (torch.ops.aten, _PRODUCTS, _flops_of_linear),
    ):
        formulas |= {getattr(library, name): formula for name in names if hasattr(library, name)}
    return formulas


FLOPS_OF_QUANTISED = _formulas()
