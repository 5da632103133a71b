"""Nodes, candidate edges, wirings and activated paths, without torch."""
