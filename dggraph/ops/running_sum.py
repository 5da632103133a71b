"""The inputs of a stage's nodes, one after the other: where it can, a sum continues the last one.

If the sources of a node are those of the node before and one more, with equal weights, its sum is
the sum before plus one term. It is then written in place, unless something else still has it.

A weight is a float, or a tensor (B, 1, ...) if it differs between images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weight = Any
Terms = Sequence[tuple[int, int]]
"""(edge, source) of each term of a sum, in order."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What may happen to the input of a vertex."""

    is_written: bool
    """Its block writes into it; for `out`, the code after the stage."""
    is_kept: bool
    """Its block may keep a reference to it."""
    may_return: bool = True
    """Its block may return it, or a view of it."""


class RunningSum:
    """The last sum of a stage, from which the next one may continue."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.is_own = False
        """Whether nothing else has the tensor, so that it may be written."""

    def advance(
        self,
        terms: Terms,
        same: Terms,
        features: Sequence[Any],
        weights: Sequence[Weight],
        effects: Effects,
    ) -> Tensor:
        """Return the sum of `terms`.

        Args:
            terms: At least one.
            same: What `continued` returns for them and the terms before.
            features: One for each vertex.
            weights: One for each edge.
            effects: Those of the vertex that gets the sum.
        """
        total = self.total
        if same and total is not None and _are_equal(weights, same):
            others = terms[-1:]
        else:
            edge, source = terms[0]
            total, weight, others = features[source], weights[edge], terms[1:]
            self.is_own = weight.__class__ is not float or weight != 1.0
            if self.is_own:
                total = total * weight
            elif effects.is_written and not others:
                total, self.is_own = total.clone(), True
        for edge, source in others:
            feature, weight = features[source], weights[edge]
            is_in_place = self.is_own and total.dtype is feature.dtype
            if weight.__class__ is not float:
                add = total.addcmul_ if is_in_place else total.addcmul
                total = add(feature, weight)
            elif is_in_place:
                total.add_(feature, alpha=weight)
            else:
                total = torch.add(total, feature, alpha=weight)
            self.is_own = True
        self.total = total
        return total

    def after_block(self, output: Tensor, effects: Effects) -> None:
        """Note what the block of the last sum may have done to it."""
        if effects.is_written:
            self.total = None
        elif self.is_own and (
            effects.is_kept or (effects.may_return and _share_memory(output, self.total))
        ):
            self.is_own = False


def continued(terms: Terms, before: Terms) -> tuple[tuple[int, int], ...]:
    """Return the pairs of edges that need equal weights if `terms` are to continue `before`.

    The result is empty if they cannot.
    """
    if not before or [source for _, source in terms[:-1]] != [source for _, source in before]:
        return ()
    return tuple((edge, other) for (edge, _), (other, _) in zip(terms, before, strict=False))


def _are_equal(weights: Sequence[Weight], pairs: Terms) -> bool:
    """Whether both edges of every pair have the same float as weight."""
    for edge, other in pairs:
        ours, theirs = weights[edge], weights[other]
        if ours.__class__ is not float or theirs.__class__ is not float or ours != theirs:
            return False
    return True


def _share_memory(one: Tensor, other: Tensor | None) -> bool:
    """Whether both tensors are views of one allocation."""
    assert other is not None
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
