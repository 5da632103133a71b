"""The cost of thresholds, as measured by `calibrate`, used by `net.set_budget` and archived.

Every share is the mean number of multiply-accumulates per image, divided by that of the static
network. It may exceed 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dggraph.errors import InputError

TOLERANCE = 0.02
"""A budget of 0.7 is met by a mean MACs ratio of up to 0.72."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPoint:
    """The mean MACs ratio measured at one threshold.

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
    """The measured point that serves one target best.

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
    """Whether kept <= target + 0.02.

    A budget is an upper limit. Keeping far less than the target, where paths change abruptly, meets
    it too.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetCurve:
    """Mean MACs ratio against the threshold, on held-out images.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> curve = dggraph.calibrate(net, [torch.rand(4, 3, 32, 32)], targets=(1.0,))
        >>> curve is net.budgets
        True
    """

    num_instances: int
    points: tuple[BudgetPoint, ...]
    """All measured points, ordered by threshold."""
    budgets: tuple[Budget, ...]
    """One per requested target, in the order of the request."""

    def at(self, target: float) -> Budget:
        """Return the measured point that serves `target` best, without interpolation.

        Raises:
            InputError: `target` is outside the measured range by more than 0.02.
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
    """Return the point closest to `target`, among those that meet the budget if there are any."""
    within = [point for point in points if point.kept <= target + TOLERANCE]
    best = min(within or points, key=lambda point: abs(point.kept - target))
    return Budget(target=target, threshold=best.threshold, kept=best.kept, budget_met=bool(within))
