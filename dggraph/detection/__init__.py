"""Detectors with a dynamic backbone: models, sets of images with boxes, average precision."""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily

if TYPE_CHECKING:
    from dggraph.detection.coco import read_coco as read_coco
    from dggraph.detection.recording import make_detector_predictor as make_detector_predictor
    from dggraph.detection.voc import read_voc as read_voc
    from dggraph.models.feature_pyramids import faster_rcnn_on as faster_rcnn_on
    from dggraph.models.feature_pyramids import pyramid_on as pyramid_on
    from dggraph.network.gate_contexts import collecting_gates as collecting_gates

__all__ = [
    "collecting_gates",
    "faster_rcnn_on",
    "make_detector_predictor",
    "pyramid_on",
    "read_coco",
    "read_voc",
]

_HOMES = {
    "collecting_gates": "dggraph.network.gate_contexts",
    "faster_rcnn_on": "dggraph.models.feature_pyramids",
    "make_detector_predictor": "dggraph.detection.recording",
    "pyramid_on": "dggraph.models.feature_pyramids",
    "read_coco": "dggraph.detection.coco",
    "read_voc": "dggraph.detection.voc",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
