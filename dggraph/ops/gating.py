"""Gates: router logits to bounded edge weights, then which edges are open, and which nodes an instance reaches.

Shape suffixes: B instances, E edges of one step, N source nodes. A weight of exactly 0 means an inactive edge, everywhere after
`open_edges`: thresholds are never negative, so an active weight is never 0.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dggraph.errors import InputError

SCRATCH_OFFSET = 1.0


class AnchoredGate(nn.Module):
    """weight = static + tanh(logit): logit 0 is the backbone itself, and the gradient there is 1. Our choice, not the paper's.

    Args:
        static: for each edge of the row, 1 where the backbone had it, else 0.
    """

    anchor_E: Tensor

    def __init__(self, static: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("anchor_E", torch.tensor(static, dtype=torch.float32), persistent=False)

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Weights in (-1, 2), shape (B, E)."""
        return self.anchor_E.to(logits_BE.dtype) + torch.tanh(logits_BE)


class SigmoidGate(nn.Module):
    """weight = sigmoid(logit + 1): every edge starts open at 0.73, for training from nothing."""

    def __init__(self, static: Sequence[bool]) -> None:
        super().__init__()

    def forward(self, logits_BE: Tensor) -> Tensor:
        """Weights in (0, 1), shape (B, E)."""
        return torch.sigmoid(logits_BE + SCRATCH_OFFSET)


GATES: dict[str, Callable[[Sequence[bool]], nn.Module]] = {"anchored": AnchoredGate, "sigmoid": SigmoidGate}


def register_gate(name: str, make: Callable[[Sequence[bool]], nn.Module]) -> None:
    """Make `name` usable as `gate=`.

    Args:
        name: not taken.
        make: takes, for each edge of a row, whether the backbone had it; returns a module from logits to weights, both (B, E).
            For `init="preserve"` zero logits must give weight 1 on those edges and at most the threshold on the others.

    Raises:
        InputError: the name is taken.
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


def open_edges(raw_BE: Tensor, live: Sequence[Tensor | None], threshold: Tensor, training: bool) -> Tensor:
    """Drop edges at or below the threshold and edges whose source is dead for the instance.

    Args:
        raw_BE: bounded weights as the gate gave them.
        live: per edge, (B,) bool of its source node, or None for the entry, which is always live.
        threshold: 0-d, not negative. NaN weights stay open and visible.
        training: straight-through: the gradient passes dropped edges too, if their source is live.

    Returns:
        (B, E), 0 where an edge is inactive.
    """
    source_live_BE = torch.stack(
        [raw_BE.new_ones(raw_BE.shape[0], dtype=torch.bool) if one is None else one for one in live], dim=1
    )
    active_BE = source_live_BE & ~(raw_BE <= threshold)
    weights_BE = torch.where(active_BE, raw_BE, 0.0)
    if not training:
        return weights_BE
    return _straight_through(weights_BE, torch.where(source_live_BE, raw_BE, 0.0))


def open_output(weights_BE: Tensor, raw_BE: Tensor, live: Sequence[Tensor | None], training: bool) -> Tensor:
    """Where nothing reaches `out`, open the live edge of largest weight (ties: the later node), at weight 1.

    Where a wiring gives no live node an edge to `out` at all, nothing opens and the stage's output is zeros; the complete wiring, and
    any with v0 -> out, rules that out.

    Args:
        weights_BE: what `open_edges` left of the edges into `out`.
        raw_BE: their weights before.
        live: as in `open_edges`.
        training: pass the gradient straight through to the raw weight.

    Returns:
        (B, E) with at least one active edge for every instance that has a live source.
    """
    is_cut_B = ~(weights_BE != 0).any(dim=1)
    dead_BE = torch.stack([torch.zeros_like(is_cut_B) if one is None else ~one for one in live], dim=1)
    reachable_BE = raw_BE.masked_fill(dead_BE, -torch.inf)
    later_first_B = reachable_BE.flip(1).argmax(dim=1)
    chosen_BE = torch.nn.functional.one_hot(raw_BE.shape[1] - 1 - later_first_B, raw_BE.shape[1]).bool()
    opens_BE = chosen_BE & is_cut_B[:, None] & ~dead_BE
    opened_BE = torch.where(opens_BE, 1.0, weights_BE)
    if not training:
        return opened_BE
    return _straight_through(opened_BE, torch.where(opens_BE, raw_BE, weights_BE))


def is_live(weights_BE: Tensor) -> Tensor:
    """(B,) bool: an active edge leads into the node. `open_edges` closed those of dead sources, so one pass suffices."""
    return (weights_BE.detach() != 0).any(dim=1)


def _straight_through(value: Tensor, gradient_of: Tensor) -> Tensor:
    """`value` forward, to the bit; the gradient of `gradient_of` backward."""
    return _StraightThrough.apply(value.detach(), gradient_of)  # type: ignore[no-any-return]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, gradient_of: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: object, inputs: object, output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
