"""Questions that a backbone asks about its batch, under compilers that answer with symbols."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dggraph.errors import BranchError
from dggraph.ops.guards import hold


def asks_for_its_size(x: Tensor) -> Tensor:
    hold(x.shape[0] > 1, True, "here")
    hold(x.shape[0] > 8, False, "here")
    return x + 1


def asks_in_a_view(x: Tensor) -> Tensor:
    hold(x.view(2, -1).shape[1] > 1, True, "here")
    return x + 1


@pytest.mark.parametrize("function", [asks_for_its_size, asks_in_a_view])
def test_symbols_are_answers(function: Callable[[Tensor], Tensor]) -> None:
    torch.compiler.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(torch.zeros(4)), torch.ones(4))


def test_symbols_are_answers_within_a_condition() -> None:
    class Skips(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.cond(x.sum() > 0, asks_in_a_view, torch.clone, (x,))
            return found

    program = torch.export.export(Skips(), (torch.ones(4),)).module()
    assert torch.equal(program(torch.ones(4)), torch.full((4,), 2.0))


def test_another_answer_is_refused() -> None:
    with pytest.raises(BranchError, match="the answer was True during conversion and is False now"):
        asks_for_its_size(torch.zeros(1))
