"""dggraph: turn any static vision backbone into a Dynamic Graph Network (arXiv 2010.01097).

The names below are the whole public surface; each is imported on first use, so `import dggraph` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dggraph.detection.detectors import convert_backbone_
    from dggraph.evaluation.calibration import calibrate
    from dggraph.evaluation.recording import record
    from dggraph.graph.wiring import register_wiring
    from dggraph.network.archive import load, save
    from dggraph.network.conversion import convert
    from dggraph.network.inference import optimize_for_inference
    from dggraph.network.norms import recalibrate_norms_
    from dggraph.ops.gating import register_gate
    from dggraph.ops.routing import register_router
    from dggraph.training import losses
    from dggraph.views.drawing import render

__version__ = "0.1.0"
__all__ = [
    "calibrate",
    "convert",
    "convert_backbone_",
    "load",
    "losses",
    "optimize_for_inference",
    "recalibrate_norms_",
    "record",
    "register_gate",
    "register_router",
    "register_wiring",
    "render",
    "save",
]

_HOMES = {
    "calibrate": "dggraph.evaluation.calibration",
    "convert": "dggraph.network.conversion",
    "convert_backbone_": "dggraph.detection.detectors",
    "load": "dggraph.network.archive",
    "optimize_for_inference": "dggraph.network.inference",
    "recalibrate_norms_": "dggraph.network.norms",
    "record": "dggraph.evaluation.recording",
    "register_gate": "dggraph.ops.gating",
    "register_router": "dggraph.ops.routing",
    "register_wiring": "dggraph.graph.wiring",
    "render": "dggraph.views.drawing",
    "save": "dggraph.network.archive",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return import_module("dggraph.training.losses")
    if name not in _HOMES:
        raise AttributeError(f"module 'dggraph' has no attribute {name!r}")
    import_module("dggraph.views.drawing")  # from now on notebooks draw graphs
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
