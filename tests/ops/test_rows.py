"""Sums over rows as matrix products: what a plain loop gives, also around inf and NaN."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dggraph.ops import rows
from dggraph.ops.rows import FEW_ROWS, Places, Weights, sum_rows

pytestmark = pytest.mark.cpu

NUM_ROWS, NUM_EDGES = 5, 3
Case = tuple[list[Tensor], Places, Weights]


@pytest.fixture(autouse=True)
def _in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the C++ kernels, which come first where they are built."""
    monkeypatch.setattr(rows.kernels, "is_usable", lambda _: False)


def make(dtype: torch.dtype, layout: torch.memory_format, num_rows: int = NUM_ROWS) -> Case:
    """Sources of 4, 5 and 6 rows; row 0 is read by nobody."""
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    features = [
        torch.randn(4 + edge, 3, 2, 5, dtype=dtype).to(memory_format=layout)
        for edge in range(NUM_EDGES)
    ]
    places = generator.integers(1, 4, (num_rows, NUM_EDGES))
    weights = generator.random((num_rows, NUM_EDGES)) * (
        generator.random((num_rows, NUM_EDGES)) < 0.7
    )
    weights[0], weights[1] = 0, [1, 0, 0]
    return features, places, weights.astype(np.float32)


def plain(features: list[Tensor], places: Places, weights: Weights) -> Tensor:
    total = torch.zeros(len(weights), *features[0].shape[1:], dtype=torch.float64)
    for row, edge in np.argwhere(weights):
        total[row] += float(weights[row, edge]) * features[edge][places[row, edge]].double()
    return total


def was_product(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, list[bool]]:
    told: list[bool] = []
    real = rows._sum_by_product
    with monkeypatch.context() as patched:
        patched.setattr(
            rows, "_sum_by_product", lambda *given: told.append(real(*given)) or told[-1]
        )
        return sum_rows(*case, may_alias=False), told


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_product_is_the_sum(
    dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make(dtype, layout)
    total, told = was_product(case, monkeypatch)
    assert told == [True]
    torch.testing.assert_close(total.double(), plain(*case), rtol=1e-6, atol=1e-6)
    assert total.is_contiguous(memory_format=layout)
    assert total.dtype == dtype
    assert torch.equal(total[1], case[0][0][case[1][1, 0]])  # one edge of weight 1: to the bit


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_rows_that_an_image_does_not_read_never_show(
    bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, places, weights = make(torch.float32, torch.contiguous_format)
    expected = plain(features, places, weights)
    features[0][0] = bad
    total, told = was_product((features, places, weights), monkeypatch)
    assert told == [False]
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-6)
    features[0][places[1, 0], 0, 0, 0] = bad
    total, _ = was_product((features, places, weights), monkeypatch)
    assert not total[1, 0, 0, 0].isfinite()
    assert total[0].isfinite().all()


def test_other_sums_take_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows, two layouts, two dtypes, autocast, and products that the user lets be rounded."""
    case = make(torch.float32, torch.contiguous_format)
    features, places, weights = case
    mixed = [features[0].to(memory_format=torch.channels_last), *features[1:]]
    wide = [features[0].double(), *features[1:]]
    many = make(torch.float32, torch.contiguous_format, FEW_ROWS + 1)
    for other in ((mixed, places, weights), (wide, places, weights), many):
        total, told = was_product(other, monkeypatch)
        assert told == [False]
        torch.testing.assert_close(total.double(), plain(*other), rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu"):
        assert was_product(case, monkeypatch)[1] == [False]
    torch.set_float32_matmul_precision("medium")
    try:
        assert was_product(case, monkeypatch)[1] == [False]
    finally:
        torch.set_float32_matmul_precision("highest")
