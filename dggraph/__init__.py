"""dggraph: turn any static vision backbone into a Dynamic Graph Network (arXiv 2010.01097).

The names below and those of `dggraph.losses`, `training`, `evaluation`, `detection`, `baselines`
and `errors` are the whole public surface. Each is imported on first use.
"""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily
from dggraph.moved import keep_old_paths

if TYPE_CHECKING:
    from dggraph import baselines as baselines
    from dggraph import detection as detection
    from dggraph import errors as errors
    from dggraph import evaluation as evaluation
    from dggraph import losses as losses
    from dggraph import training as training
    from dggraph.baselines.archive import load as load
    from dggraph.baselines.archive import save as save
    from dggraph.baselines.pretrained import from_pretrained as from_pretrained
    from dggraph.detection.detectors import convert_backbone_ as convert_backbone_
    from dggraph.evaluation.calibration import calibrate as calibrate
    from dggraph.evaluation.explanation import Explanation as Explanation
    from dggraph.evaluation.explanation import explain as explain
    from dggraph.evaluation.gate_diagnostics import check_gates as check_gates
    from dggraph.evaluation.recording import Recording as Recording
    from dggraph.evaluation.recording import record as record
    from dggraph.exporting.fixed_path import static as static
    from dggraph.exporting.network_files import ExportReport as ExportReport
    from dggraph.exporting.network_files import export as export
    from dggraph.exporting.thinning import Thinned as Thinned
    from dggraph.exporting.thinning import thin as thin
    from dggraph.graph.ir import ActivatedPath as ActivatedPath
    from dggraph.graph.ir import BlockNode as BlockNode
    from dggraph.graph.ir import CandidateEdge as CandidateEdge
    from dggraph.graph.ir import DynamicGraph as DynamicGraph
    from dggraph.graph.wiring import register_wiring as register_wiring
    from dggraph.models.preprocessing import Preprocess as Preprocess
    from dggraph.network.conversion import convert as convert
    from dggraph.network.cost import measure_macs as measure_macs
    from dggraph.network.gates import Gates as Gates
    from dggraph.network.inference import optimize_for_inference as optimize_for_inference
    from dggraph.network.network import DynamicNetwork as DynamicNetwork
    from dggraph.network.norms import recalibrate_norms_ as recalibrate_norms_
    from dggraph.ops.gating import register_gate as register_gate
    from dggraph.ops.routing import register_router as register_router
    from dggraph.system.allocator import keep_freed_memory as keep_freed_memory
    from dggraph.views.drawing import render as render

__version__ = "0.2.0"
__all__ = [
    "ActivatedPath",
    "BlockNode",
    "CandidateEdge",
    "DynamicGraph",
    "DynamicNetwork",
    "Explanation",
    "ExportReport",
    "Gates",
    "Preprocess",
    "Recording",
    "Thinned",
    "baselines",
    "calibrate",
    "check_gates",
    "convert",
    "convert_backbone_",
    "detection",
    "errors",
    "evaluation",
    "explain",
    "export",
    "from_pretrained",
    "keep_freed_memory",
    "load",
    "losses",
    "measure_macs",
    "optimize_for_inference",
    "recalibrate_norms_",
    "record",
    "register_gate",
    "register_router",
    "register_wiring",
    "render",
    "save",
    "static",
    "thin",
    "training",
]

_HOMES = {
    "ActivatedPath": "dggraph.graph.ir",
    "BlockNode": "dggraph.graph.ir",
    "CandidateEdge": "dggraph.graph.ir",
    "DynamicGraph": "dggraph.graph.ir",
    "DynamicNetwork": "dggraph.network.network",
    "Explanation": "dggraph.evaluation.explanation",
    "ExportReport": "dggraph.exporting.network_files",
    "Gates": "dggraph.network.gates",
    "Preprocess": "dggraph.models.preprocessing",
    "Recording": "dggraph.evaluation.recording",
    "Thinned": "dggraph.exporting.thinning",
    "baselines": "dggraph.baselines",
    "calibrate": "dggraph.evaluation.calibration",
    "check_gates": "dggraph.evaluation.gate_diagnostics",
    "convert": "dggraph.network.conversion",
    "convert_backbone_": "dggraph.detection.detectors",
    "detection": "dggraph.detection",
    "errors": "dggraph.errors",
    "evaluation": "dggraph.evaluation",
    "explain": "dggraph.evaluation.explanation",
    "export": "dggraph.exporting.network_files",
    "from_pretrained": "dggraph.baselines.pretrained",
    "keep_freed_memory": "dggraph.system.allocator",
    "load": "dggraph.baselines.archive",
    "losses": "dggraph.losses",
    "measure_macs": "dggraph.network.cost",
    "optimize_for_inference": "dggraph.network.inference",
    "recalibrate_norms_": "dggraph.network.norms",
    "record": "dggraph.evaluation.recording",
    "register_gate": "dggraph.ops.gating",
    "register_router": "dggraph.ops.routing",
    "register_wiring": "dggraph.graph.wiring",
    "render": "dggraph.views.drawing",
    "save": "dggraph.baselines.archive",
    "static": "dggraph.exporting.fixed_path",
    "thin": "dggraph.exporting.thinning",
    "training": "dggraph.training",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
keep_old_paths()
