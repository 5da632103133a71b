"""Tensor functions without a graph: routing, gating, liveness, aggregation and MACs."""
