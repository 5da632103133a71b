"""What a threshold costs: the curve that `calibrate` measures, that `net.set_budget` reads, and
that an archive keeps.

All shares are mean multiply-accumulates per instance over those of the static network, and may
exceed 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dggraph.errors import InputError

TOLERANCE = 0.02
"""A budget of 0.7 is met by a mean kept fraction of up to 0.72."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """What one threshold was measured to keep.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> curve = dggraph.calibrate(net, [torch.rand(4, 3, 32, 32)], targets=(1.0,))
        >>> curve.points[0].threshold
        0.0
    """

    threshold: float
    kept: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The point that serves one target best.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> curve = dggraph.calibrate(net, [torch.rand(4, 3, 32, 32)], targets=(1.0,))
        >>> curve.budgets[0].target
        1.0
    """

    target: float
    threshold: float
    kept: float
    budget_met: bool
    """kept <= target + 0.02. A budget is an upper limit: keeping far less than the target, where
    paths jump, meets it too.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCurve:
    """Mean kept MACs against the threshold, on held-out images.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> curve = dggraph.calibrate(net, [torch.rand(4, 3, 32, 32)], targets=(1.0,))
        >>> curve is net.budgets
        True
    """

    num_instances: int
    points: tuple[BudgetPoint, ...]
    """Everything that was measured, by threshold."""
    budgets: tuple[Budget, ...]
    """One per target asked for, in that order."""

    def at(self, target: float) -> Budget:
        """The measured point for `target`; nothing between points is assumed.

        Raises:
            InputError: `target` is outside what was measured, by more than 0.02.
        """
        kept = [point.kept for point in self.points]
        if not min(kept) - TOLERANCE <= target <= max(kept) + TOLERANCE:
            raise InputError(
                f"a budget of {target} is outside the curve: thresholds from"
                f" {self.points[0].threshold:.3g} to {self.points[-1].threshold:.3g} keep"
                f" {min(kept):.3f} to {max(kept):.3f} of the static network's MACs. Train with"
                " losses.budget at that target, or choose one in between."
            )
        return choose(self.points, target)


def choose(points: Sequence[BudgetPoint], target: float) -> Budget:
    """The point with the closest kept fraction, among those that meet the budget if any does."""
    within = [point for point in points if point.kept <= target + TOLERANCE]
    best = min(within or points, key=lambda point: abs(point.kept - target))
    return Budget(target=target, threshold=best.threshold, kept=best.kept, budget_met=bool(within))
