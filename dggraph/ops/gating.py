"""Gates: router logits to bounded edge weights.

`liveness` then decides which of these edges are open.

Shape suffixes: B instances, E edges that one router decides.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dggraph.errors import InputError

SCRATCH_OFFSET = 1.0


class AnchoredGate(nn.Module):
    """A gate with weight = static + tanh(logit / temperature); logit 0 is the backbone.

    This form is our choice, not the paper's.

    Args:
        static: for each edge of the row, 1 if the backbone has it, else 0.
    """

    anchor_E: Tensor
    temperature: Tensor
    """0-d buffer, initially 1. Smaller values give sharper decisions.

    Set it with `DynamicNetwork.set_temperature`.
    """

    def __init__(self, static: Sequence[bool]) -> None:
        """Register the anchors and the temperature as buffers."""
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float32))
        self.register_buffer(
            "anchor_E", torch.tensor(static, dtype=torch.float32), persistent=False
        )

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Map logits (B, E) to weights in (-1, 2), shape (B, E)."""
        return self.anchor_E.to(logits_BE.dtype) + torch.tanh(logits_BE / self.temperature)


class SigmoidGate(nn.Module):
    """A gate with weight = sigmoid(logit / temperature + 1), for training from scratch.

    At logit 0 every edge is open, with weight 0.73.
    """

    temperature: Tensor
    """As in `AnchoredGate`."""

    def __init__(self, static: Sequence[bool]) -> None:
        """Register the temperature as a buffer; `static` is not used."""
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0, dtype=torch.float32))

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Map logits (B, E) to weights in (0, 1), shape (B, E)."""
        return torch.sigmoid(logits_BE / self.temperature + SCRATCH_OFFSET)


GATES: dict[str, Callable[[Sequence[bool]], nn.Module]] = {
    "anchored": AnchoredGate,
    "sigmoid": SigmoidGate,
}


def register_gate(name: str, make: Callable[[Sequence[bool]], nn.Module]) -> None:
    """Register a gate, to be selected with `gate=name`.

    Args:
        name: a name that is not registered yet.
        make: called with one bool per edge of a row, whether the backbone has it; returns a module
            from logits to weights, both (B, E). For `init="preserve"`, zero logits must give weight
            1 on the backbone's edges and at most the threshold on all others.

    Raises:
        InputError: the name is already registered.

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
        raise InputError(f"a gate named {name!r} is already registered; choose another name.")
    GATES[name] = make


def column(rows: Sequence[Tensor], picks: Sequence[tuple[int, int]]) -> Tensor:
    """Gather the weights of the edges into one node from the adjacency rows of its sources.

    Args:
        rows: one tensor (B, edges of that router) per router.
        picks: for each incoming edge, its row and its place in that row.

    Returns:
        (B, E), one column of the adjacency matrix.
    """
    return torch.stack([rows[row][:, place] for row, place in picks], dim=1)
