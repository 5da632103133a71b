"""Old module paths, which still work in versions 0.1 and 0.2 with a DeprecationWarning.

Public names are importable from `dggraph` and its public submodules, and stay there.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

MOVED = {
    "compiler.building": "compiler.static_graph",
    "compiler.cutting": "compiler.partition",
    "comparing.memory": "system.tensor_memory",
    "runtime.archive": "network.archive",
    "runtime.atlas": "evaluation.atlas",
    "runtime.backbones": "models.small_resnet",
    "runtime.budgets": "network.budgets",
    "runtime.calibration": "evaluation.calibration",
    "runtime.checking": "network.static_checks",
    "runtime.constants": "network.constants",
    "runtime.conversion": "network.conversion",
    "runtime.cost": "network.cost",
    "runtime.counting": "evaluation.atlas_counts",
    "runtime.detection_models": "detection.registry",
    "runtime.detectors": "detection.detectors",
    "runtime.digests": "network.digests",
    "runtime.durable": "system.files",
    "runtime.execution": "network.execution",
    "runtime.health": "evaluation.gate_diagnostics",
    "runtime.idx": "data.idx",
    "runtime.imagesets": "data.image_sets",
    "runtime.inference": "network.inference",
    "runtime.inspection": "models.image_files",
    "runtime.listing": "data.listing",
    "runtime.locating": "system.paths",
    "runtime.manifest": "network.manifest",
    "runtime.models": "models.registry",
    "runtime.modes": "system.modes",
    "runtime.network": "network.network",
    "runtime.norms": "network.norms",
    "runtime.outputs": "network.outputs",
    "runtime.pinning": "network.gate_constraints",
    "runtime.preprocessing": "models.preprocessing",
    "runtime.processes": "system.processes",
    "runtime.pyramids": "models.feature_pyramids",
    "runtime.recording": "evaluation.recording",
    "runtime.reparameterising": "models.reparameterisation",
    "runtime.report": "network.report",
    "runtime.resuming": "evaluation.atlas_state",
    "runtime.sharding": "system.sharding",
    "runtime.shell": "network.shell",
    "runtime.skipping": "network.block_removal",
    "runtime.skipping_checks": "network.skipping_checks",
    "runtime.standin": "network.standin",
    "runtime.structure": "network.structure",
    "runtime.timing": "evaluation.timing",
    "runtime.training_checks": "network.training_checks",
    "runtime.weights": "models.weights",
    "training.augmentation": "data.augmentation",
    "training.box_data": "detection.box_data",
    "training.box_entries": "detection.box_entries",
    "training.box_evaluation": "detection.average_precision",
    "training.box_images": "detection.box_images",
    "training.box_sets": "detection.box_sets",
    "training.boxes": "detection.readers",
    "training.coco": "detection.coco",
    "training.data": "data.sources",
    "training.evaluation": "evaluation.accuracy",
    "training.folders": "data.folders",
    "training.halves": "evaluation.held_out_budgets",
    "training.loading": "system.loaders",
    "training.locking": "system.locks",
    "training.losses": "losses",
    "training.naming": "data.class_names",
    "training.order": "data.sampler",
    "training.pixels": "data.pixels",
    "training.sensitivity": "evaluation.sensitivity",
    "training.validation": "data.validation",
    "training.voc": "detection.voc",
    "views.cards": "views.report_parts",
    "views.curves": "views.line_chart",
    "views.diagram": "views.stage_diagram",
    "views.document": "views.json_picture",
    "views.dot": "views.dot_picture",
    "views.frame": "views.captions",
    "views.lettering": "views.escaping",
    "views.marks": "views.annotations",
    "views.mermaid": "views.mermaid_picture",
    "views.numbers": "views.atlas_json",
    "views.overlay": "views.box_overlay",
    "views.page": "views.html_page",
    "views.sections": "views.report_sections",
    "views.summary": "views.training_summary",
    "views.svg": "views.svg_picture",
}
"""Maps old paths to new ones, both relative to the package."""
PACKAGE = "dggraph.runtime"
"""The former package of most of these modules."""


class _Alias:  # not an importlib.abc.Loader, whose module takes 20 ms to import
    def create_module(self, spec: ModuleSpec) -> None:
        """Return None for a plain module; the real one replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name == PACKAGE:
            return
        home = f"dggraph.{MOVED[name.removeprefix('dggraph.')]}"
        warnings.warn(
            f"{name} is called {home} now; the old path goes away in version 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[name] = import_module(home)


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == PACKAGE or (
            fullname.startswith("dggraph.") and fullname.removeprefix("dggraph.") in MOVED
        ):
            return ModuleSpec(fullname, cast("Any", _Alias()), is_package=fullname == PACKAGE)
        return None


def keep_old_paths() -> None:
    """Install the finder of old paths, after all other finders."""
    if not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.append(cast("Any", _Finder()))
