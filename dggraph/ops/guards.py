"""Guards: checks on every batch that the traced branch is still the right one.

While the backbone is traced, its Python code asks questions about the batch, for example whether an
image is so wide that it needs no padding. The graph contains the branch that the answer selected,
and a call of `hold` that asks the question again.
"""

from typing import Any

import torch
from torch.fx.node import has_side_effect

from dggraph.errors import BranchError


@has_side_effect
def hold(answer: Any, expected: bool | int | float, place: str, *, is_type: bool = False) -> None:
    """Reject a batch for which the backbone would take another branch than the traced one.

    Args:
        answer: the answer for this batch.
        expected: the answer during tracing.
        place: file, line and source of the question.
        is_type: whether the question is about a dtype. Autocast changes dtypes, and conversion
            itself compares a pass under autocast, so the question is not asked there.

    Raises:
        BranchError: the answers differ.
    """
    if is_type and (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
        return
    if isinstance(answer, torch.Tensor):  # torch.jit.trace makes tensors of sizes
        answer = answer.item()
    if isinstance(expected, bool):  # the symbols of torch.compile have to be branched on
        is_same = expected if answer else not expected
    else:
        is_same = bool(answer == expected)
    if not is_same:
        raise BranchError(
            f"the backbone branches on its batch at {place}: the answer was {expected!r} during"
            f" conversion and is {answer!r} now, so the backbone would take another branch than the"
            " converted network. Convert with an `example_input` of this size (in this dtype, on"
            " this device), or keep that module as a single call with `leaves=`."
        )
