"""The peak of allocated memory, in bytes that can be counted by hand."""

import torch

from dggraph.comparing.memory import peak_bytes


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
