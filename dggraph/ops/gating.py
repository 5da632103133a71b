"""Gates: router logits to bounded edge weights. Which of them are open is for `liveness` to say.

Shape suffixes: B instances, E edges that one router decides.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dggraph.errors import InputError

SCRATCH_OFFSET = 1.0


class AnchoredGate(nn.Module):
    """weight = static + tanh(logit / temperature): logit 0 is the backbone itself. Our choice, not
    the paper's.

    Args:
        static: for each edge of the row, 1 where the backbone had it, else 0.
    """

    anchor_E: Tensor
    temperature: Tensor
    """0-d buffer, 1 at the start; smaller makes decisions sharper
    (`DynamicNetwork.set_temperature`).
    """

    def __init__(self, static: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float32))
        self.register_buffer(
            "anchor_E", torch.tensor(static, dtype=torch.float32), persistent=False
        )

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Weights in (-1, 2), shape (B, E)."""
        return self.anchor_E.to(logits_BE.dtype) + torch.tanh(logits_BE / self.temperature)


class SigmoidGate(nn.Module):
    """weight = sigmoid(logit / temperature + 1): every edge starts open at 0.73, for training from
    nothing.
    """

    temperature: Tensor
    """As for `AnchoredGate`."""

    def __init__(self, static: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float32))

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Weights in (0, 1), shape (B, E)."""
        return torch.sigmoid(logits_BE / self.temperature + SCRATCH_OFFSET)


GATES: dict[str, Callable[[Sequence[bool]], nn.Module]] = {
    "anchored": AnchoredGate,
    "sigmoid": SigmoidGate,
}


def register_gate(name: str, make: Callable[[Sequence[bool]], nn.Module]) -> None:
    """Make `name` usable as `gate=`.

    Args:
        name: not taken.
        make: takes, for each edge of a row, whether the backbone had it; returns a module from
            logits to weights, both (B, E). For `init="preserve"` zero logits must give weight 1 on
            those edges and at most the threshold on the others.

    Raises:
        InputError: the name is taken.

    Example:
        >>> import dggraph, torch
        >>> class HardGate(torch.nn.Module):
        ...     def __init__(self, is_static):
        ...         super().__init__()
        ...         self.register_buffer("base", torch.tensor(is_static, dtype=torch.float32))
        ...     def forward(self, logits_BE):
        ...         return (self.base + logits_BE).clamp(0, 1)
        >>> dggraph.register_gate("hard", HardGate)
        >>> dggraph.convert("dggraph:resnet20_8", gate="hard").blueprint.gate
        'hard'
    """
    if name in GATES:
        raise InputError(f"there is a gate {name!r} already; choose another name.")
    GATES[name] = make


def column(rows: Sequence[Tensor], picks: Sequence[tuple[int, int]]) -> Tensor:
    """Gather the weights of the edges into one node out of the adjacency rows of its sources.

    Args:
        rows: weights, each (B, edges that this router decides).
        picks: per incoming edge, which row and which place in it.

    Returns:
        (B, E), one column of the adjacency matrix.
    """
    return torch.stack([rows[row][:, place] for row, place in picks], dim=1)
