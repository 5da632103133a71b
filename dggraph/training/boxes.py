"""Sets of images with boxes: what they are (`box_sets`), and how they are read from COCO's JSON (`coco`) and VOC's XML (`voc`)."""

from dggraph.training.box_entries import OnBadBox
from dggraph.training.box_sets import Box, BoxImage, BoxSet
from dggraph.training.coco import read_coco
from dggraph.training.voc import read_voc

__all__ = ["Box", "BoxImage", "BoxSet", "OnBadBox", "read_coco", "read_voc"]
