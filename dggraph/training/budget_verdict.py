"""Whether a finished run met its budget, in words, and what to change if it did not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dggraph.network.budgets import TOLERANCE
from dggraph.training.config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetVerdict:
    """What became of the budget of a finished run.

    Example:
        >>> from dggraph.training import BudgetVerdict
        >>> BudgetVerdict(target=0.8, kept=0.79, is_met=True, message="Budget met.").is_met
        True
    """

    target: float
    kept: float
    """The mean MACs ratio on the validation set, after the last epoch."""
    is_met: bool
    """Whether kept <= target + 0.02."""
    message: str
    """The same in words, with what to change."""


def judge_budget(config: TrainConfig, rows: Sequence[Mapping[str, Any]]) -> BudgetVerdict | None:
    """Return what became of the budget; None without one, or before the end of the run.

    Args:
        config: the keys of the run.
        rows: its rows of metrics.
    """
    epochs = [row for row in rows if "epoch" in row]
    if config.budget is None or not epochs or epochs[-1]["epoch"] < config.epochs:
        return None
    kept = epochs[-1].get("kept")
    if not isinstance(kept, int | float):  # a static network
        return None
    is_met = kept <= config.budget + TOLERANCE
    ratio = f"{kept:.3f} of the static network's MACs on the validation set"
    message = f"Budget met: {ratio}, {config.budget:g} was asked for."
    if not is_met:
        trained = next((row["kept"] for row in reversed(rows) if "loss" in row), None)
        advice = "; ".join(_advice(config, trained))
        message = (
            f"Budget missed: {ratio}, {config.budget:g} was asked for (up to {TOLERANCE:g} above"
            f" counts as met). To change, as a new experiment: {advice}. Or choose a threshold for"
            f" this network: dggraph eval RUN --budget {config.budget:g} --save FOLDER, and look at"
            " the accuracy."
        )
    return BudgetVerdict(target=config.budget, kept=kept, is_met=is_met, message=message)


def _advice(config: TrainConfig, trained: Any) -> list[str]:
    """Return what may meet the budget, the likeliest first; `trained` is the last batch's ratio."""
    assert config.budget is not None
    told = []
    if config.model_ema and isinstance(trained, float) and trained <= config.budget + TOLERANCE:
        told.append(
            f"lower model_ema_decay, now {config.model_ema_decay:g}: the average of the weights"
            f" lags behind the weights themselves, which keep {trained:.3f}"
        )
    if config.final_threshold == 0:
        told.append("leave threshold out, for 0.5: at 0 hardly any edge closes")
    if config.budget_weight is not None:
        told.append(f"leave budget_weight out, now {config.budget_weight:g}, so that it adapts")
    told.append(f"let routers learn faster, router_lr is {config.router_rate:g}")
    told.append(f"train longer, epochs is {config.epochs}")
    return told


def remarks_on_budget(config: TrainConfig) -> list[str]:
    """Return sentences about keys with which a budget is unlikely to be met."""
    if config.budget is None or config.final_threshold > 0 or config.router == "none":
        return []
    return [
        f"threshold is 0, at which hardly any edge closes, so the budget of {config.budget:g} may"
        " stay out of reach; leave threshold out, for 0.5"
    ]
