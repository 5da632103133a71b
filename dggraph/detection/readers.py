"""Sets of images with boxes (`box_sets`) and their readers.

`coco` reads COCO's JSON, and `voc` reads VOC's XML.
"""

from dggraph.detection.box_entries import OnBadBox
from dggraph.detection.box_sets import Box, BoxImage, BoxSet
from dggraph.detection.coco import read_coco
from dggraph.detection.voc import read_voc

__all__ = ["Box", "BoxImage", "BoxSet", "OnBadBox", "read_coco", "read_voc"]
