"""The peak of allocated memory, in bytes that can be counted by hand."""

import pytest
import torch
from torch import nn

from dggraph.system.tensor_memory import TensorMemoryError, at_most_bytes, peak_bytes


def test_what_lives_at_one_time_counts_once() -> None:
    def run() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first
        third = second * 2
        third.view(10, 100).add_(1)

    assert peak_bytes(run) == 2 * 4000


def test_what_was_there_before_does_not_count() -> None:
    given = torch.zeros(1000)
    assert peak_bytes(lambda: given.add_(1)) == 0
    assert peak_bytes(lambda: given.t()) == 0
    assert peak_bytes(lambda: given.double()) == 8000


def test_what_autograd_keeps_counts() -> None:
    """exp keeps its output and sin its input: before backward three tensors of 4,000 bytes live."""
    weight = torch.ones(1000, requires_grad=True)

    def forward() -> None:
        weight.exp().sin().cos().sum()

    def without() -> None:
        with torch.no_grad():
            weight.exp().sin().cos().sum()

    assert peak_bytes(without) == 2 * 4000
    assert peak_bytes(forward) == 3 * 4000 + 4
    assert peak_bytes(forward) == peak_bytes(forward)


def test_what_is_gone_does_not_count_for_a_limit() -> None:
    with at_most_bytes(10_000):
        sums = [float(torch.ones(2000).sum()) for _ in range(9)]
    assert sums == [2000] * 9


@pytest.mark.parametrize("size", [1 << 12, 1 << 28, 1 << 60])
def test_a_layer_beyond_a_limit_stops(size: int) -> None:
    told = r"MB of tensors|allocate|overflow"
    with pytest.raises(TensorMemoryError, match=told), at_most_bytes(10_000):
        nn.Linear(size, 3)


def test_small_tensors_add_up_to_a_limit() -> None:
    with pytest.raises(TensorMemoryError, match="0 MB"), at_most_bytes(10_000):
        [torch.zeros(2000) for _ in range(2)]


def test_other_errors_pass_a_limit() -> None:
    with pytest.raises(RuntimeError, match="must match"), at_most_bytes(10_000):
        torch.zeros(2) + torch.zeros(3)
