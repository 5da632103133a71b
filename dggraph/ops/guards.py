"""What a trace took for granted, looked at again on every batch.

Python asks a batch questions while the backbone's forward is traced: is this image wide enough to
need no padding? The graph holds the branch that the answer led to, and `hold` behind the question.
"""

from typing import Any

import torch
from torch.fx.node import has_side_effect

from dggraph.errors import BranchError


@has_side_effect
def hold(answer: Any, expected: bool | int | float, place: str, *, is_type: bool = False) -> None:
    """Refuse a batch for which the backbone itself would take another branch than the traced one.

    Args:
        answer: what the question gives for this batch.
        expected: what it gave while tracing.
        place: file, line and source of the question.
        is_type: the question is about a dtype. Autocast changes those, and a conversion compares an
            autocast pass, so there it is not asked again.

    Raises:
        BranchError: they differ.
    """
    if is_type and (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
        return
    if isinstance(answer, torch.Tensor):  # torch.jit.trace makes tensors of sizes
        answer = answer.item()
    # symbols of torch.export and torch.compile do not compare with a bool
    is_same = (bool(answer) is expected) if isinstance(expected, bool) else bool(answer == expected)
    if not is_same:
        raise BranchError(
            f"the backbone asks its batch at {place}: the answer was {expected!r} when it was"
            f" converted and is {answer!r} now, so its own forward would go another way than the"
            " converted one. Convert it with an `example_input` of this size (in this dtype, on"
            " this device), or keep that module whole with `leaves=`."
        )
