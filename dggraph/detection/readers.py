"""Sets of images with boxes: what they are (`box_sets`), and how they are read from COCO's JSON
(`coco`) and VOC's XML (`voc`).
"""

from dggraph.detection.box_entries import OnBadBox
from dggraph.detection.box_sets import Box, BoxImage, BoxSet
from dggraph.detection.coco import read_coco
from dggraph.detection.voc import read_voc

__all__ = ["Box", "BoxImage", "BoxSet", "OnBadBox", "read_coco", "read_voc"]
