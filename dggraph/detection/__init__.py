"""Detectors with a dynamic backbone: models, sets of boxes, average precision."""

from typing import TYPE_CHECKING

from dggraph.lazy import lazily

if TYPE_CHECKING:
    from dggraph.detection.recording import make_detector_predictor as make_detector_predictor
    from dggraph.models.feature_pyramids import faster_rcnn_on as faster_rcnn_on
    from dggraph.models.feature_pyramids import pyramid_on as pyramid_on

__all__ = [
    "faster_rcnn_on",
    "make_detector_predictor",
    "pyramid_on",
]

_HOMES = {
    "faster_rcnn_on": "dggraph.models.feature_pyramids",
    "make_detector_predictor": "dggraph.detection.recording",
    "pyramid_on": "dggraph.models.feature_pyramids",
}

__getattr__, __dir__ = lazily(__name__, _HOMES)
