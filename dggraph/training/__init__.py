"""Training, from a configuration to an archive."""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily

if TYPE_CHECKING:
    from dggraph.training.budget_verdict import BudgetVerdict as BudgetVerdict
    from dggraph.training.config import TrainConfig as TrainConfig
    from dggraph.training.config import read_config as read_config
    from dggraph.training.loop import TrainResult as TrainResult
    from dggraph.training.loop import train as train
    from dggraph.training.optimisers import param_groups as param_groups
    from dggraph.training.results import read_results as read_results
    from dggraph.views.model_card import TrainingResults as TrainingResults

__all__ = [
    "BudgetVerdict",
    "TrainConfig",
    "TrainResult",
    "TrainingResults",
    "param_groups",
    "read_config",
    "read_results",
    "train",
]

_HOMES = {
    "BudgetVerdict": "dggraph.training.budget_verdict",
    "TrainConfig": "dggraph.training.config",
    "TrainResult": "dggraph.training.loop",
    "TrainingResults": "dggraph.views.model_card",
    "param_groups": "dggraph.training.optimisers",
    "read_config": "dggraph.training.config",
    "read_results": "dggraph.training.results",
    "train": "dggraph.training.loop",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
