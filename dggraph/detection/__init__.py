"""Detectors with a dynamic backbone: models, sets of boxes, average precision."""
