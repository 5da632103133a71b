"""Measurements on a network: paths, accuracy, budgets, gates and time."""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily

if TYPE_CHECKING:
    from dggraph.data.image_sets import open_image_set as open_image_set
    from dggraph.evaluation.atlas import collect_atlas as collect_atlas
    from dggraph.evaluation.gate_diagnostics import GateHealth as GateHealth
    from dggraph.evaluation.gate_diagnostics import HealthReport as HealthReport
    from dggraph.evaluation.recording import make_predictor as make_predictor
    from dggraph.graph.atlas import Atlas as Atlas
    from dggraph.network.budgets import Budget as Budget
    from dggraph.network.budgets import BudgetCurve as BudgetCurve
    from dggraph.network.budgets import BudgetPoint as BudgetPoint
    from dggraph.network.cost import MacsSummary as MacsSummary
    from dggraph.network.norms import Recalibration as Recalibration
    from dggraph.views.report import Report as Report
    from dggraph.views.report import make_report as make_report

__all__ = [
    "Atlas",
    "Budget",
    "BudgetCurve",
    "BudgetPoint",
    "GateHealth",
    "HealthReport",
    "MacsSummary",
    "Recalibration",
    "Report",
    "collect_atlas",
    "make_predictor",
    "make_report",
    "open_image_set",
]

_HOMES = {
    "Atlas": "dggraph.graph.atlas",
    "Budget": "dggraph.network.budgets",
    "BudgetCurve": "dggraph.network.budgets",
    "BudgetPoint": "dggraph.network.budgets",
    "GateHealth": "dggraph.evaluation.gate_diagnostics",
    "HealthReport": "dggraph.evaluation.gate_diagnostics",
    "MacsSummary": "dggraph.network.cost",
    "Recalibration": "dggraph.network.norms",
    "Report": "dggraph.views.report",
    "collect_atlas": "dggraph.evaluation.atlas",
    "make_predictor": "dggraph.evaluation.recording",
    "make_report": "dggraph.views.report",
    "open_image_set": "dggraph.data.image_sets",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
