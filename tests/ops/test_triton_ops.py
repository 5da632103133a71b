"""The Triton kernels as torch operations: what compilers learn about their results."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

from dggraph.ops import triton_ops

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_types_and_layouts_are_known_without_running(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    with FakeTensorMode():
        shape, kind = (3, 4, 5, 6), {"device": "cuda", "dtype": dtype}
        features = [torch.empty(shape, **kind, memory_format=layout) for _ in range(20)]  # type: ignore[call-overload]
        weights = torch.empty(7, 20, device="cuda")
        places = torch.empty(7, 20, device="cuda", dtype=torch.int64)
        gathered = triton_ops.sum_rows(features, places, weights)
        total, products = triton_ops.sum_and_products(features, weights[:3], features[0])
        each = triton_ops.inner_products(features, features[0])
    for found, num_rows in ((gathered, 7), (total, 3)):
        assert found.shape == (num_rows, 4, 5, 6)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=layout)
        assert found.device.type == "cuda"
    for found in (products, each):
        assert found.shape == (3, 20)
        assert found.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: torch.memory_format) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, on which the operations could run")
    features = [
        torch.randn(3, 2, 4, 5, device="cuda").contiguous(memory_format=layout) for _ in range(2)
    ]
    weights = torch.rand(3, 2, device="cuda")
    weights[1, 1] = 0
    cases: list[tuple[object, tuple[object, ...]]] = [
        (triton_ops.sum_rows, ([x.requires_grad_() for x in features], None, weights)),
        (triton_ops.inner_products, (detached(features), features[0].detach())),
        (triton_ops.sum_and_products, (detached(features), weights, features[0].detach())),
    ]
    for operation, arguments in cases:
        found = torch.library.opcheck(operation, arguments)  # type: ignore[arg-type]
        assert set(found.values()) == {"SUCCESS"}, found


def detached(tensors: list[Tensor]) -> list[Tensor]:
    return [one.detach() for one in tensors]
