"""Tensors in, tensors out: routing, gating, aggregation. Knows no graph."""
