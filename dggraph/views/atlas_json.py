"""An atlas as a JSON document, with the numbers of its report."""

import json
from typing import Any

from dggraph.graph.atlas import BINS_PER_STATIC, Atlas, Frequencies, Instance
from dggraph.graph.detection import Detected
from dggraph.graph.ir import CandidateEdge, DynamicGraph


def write_numbers(graph: DynamicGraph, atlas: Atlas, score: float) -> str:
    """Return the JSON document.

    Lists over edges are in the order of `graph.edges`. The text is ASCII, so no character in it can
    mislead a reader. For a detector, all objects are listed, and `score` is the score from which
    the report outlines them.
    """
    gates = atlas.gates
    document: dict[str, Any] = {
        "format": "dggraph atlas",
        "version": 1,
        "network": atlas.network,
        "images": atlas.images,
        "num_images": atlas.num_images,
        "num_skipped": atlas.num_skipped,
        "skipped": [{"name": name, "reason": reason} for name, reason in atlas.skipped],
        "num_ignored": atlas.num_ignored,
        "accuracy": atlas.accuracy,
        "score": score if atlas.is_of_detector else None,
        "macs": {
            "static": atlas.static_macs,
            "mean": atlas.mean_macs,
            "std": atlas.std_macs,
            "kept": atlas.mean_macs / atlas.static_macs,
            "histogram": [
                {
                    "from": place / BINS_PER_STATIC,
                    "to": (place + 1) / BINS_PER_STATIC,
                    "images": number,
                }
                for place, number in atlas.histogram
            ],
        },
        "paths": {
            "num": atlas.num_paths,
            "entropy_bits": atlas.path_entropy_bits,
            "most_common": [
                {
                    "count": path.count,
                    "macs": path.path.macs,
                    "open_edges": [list(_ends(edge)) for edge in path.path.active_edges(graph)],
                    "classes": [{"name": name, "count": count} for name, count in path.classes],
                    "examples": list(path.examples),
                }
                for path in atlas.most_common
            ],
        },
        "stages": [
            {
                "name": stage,
                "edges": [
                    {
                        "source": edge.source,
                        "target": edge.target,
                        "is_static": edge.is_static,
                        "frequency": frequency,
                    }
                    | {"closer_than_1e-4": gates.tie_fractions.get(edge, 0.0)}
                    for edge, frequency in zip(
                        graph.edges(stage), atlas.frequencies[stage], strict=True
                    )
                ],
                "reached": {
                    node.name: gates.live_fractions[node.name]
                    for node in graph.nodes(stage)
                    if node.kind == "block"
                },
            }
            for stage in graph.stages
        ],
        "classes": [
            {
                "name": one.name,
                "num_images": one.num_images,
                "num_correct": one.num_correct,
                "mean_macs": one.mean_macs,
            }
            | {"frequencies": _lists(one.frequencies)}
            for one in atlas.classes
        ],
        "gates": {
            "always_open": [_ends(edge) for edge in gates.always_open],
            "always_closed": [_ends(edge) for edge in gates.always_closed],
            "never_reached": list(gates.never_live),
            "warnings": list(gates.warnings),
        },
        "weights_origin": atlas.weights_origin,
        "cheapest": list(atlas.cheapest),
        "dearest": list(atlas.dearest),
        "instances": [_instance(one) for one in atlas.instances],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def list_detected(detected: Detected | None) -> dict[str, Any]:
    """Return the size of the image and all objects found on it; empty if no detector ran."""
    if detected is None:
        return {}
    objects = [
        {"class": one.name, "score": one.score, "corners": list(one.corners)}
        for one in detected.objects
    ]
    return {"size": list(detected.size), "objects": objects}


def _ends(edge: CandidateEdge) -> tuple[str, str]:
    return edge.source, edge.target


def _lists(frequencies: Frequencies) -> dict[str, list[float]]:
    return {stage: list(shares) for stage, shares in frequencies.items()}


def _instance(one: Instance) -> dict[str, Any]:
    facts = {
        "index": one.index,
        "name": one.name,
        "class": one.label,
        "prediction": one.prediction,
        "probability": one.probability,
    }
    facts |= list_detected(one.detected)
    return facts | {
        "macs": one.path.macs,
        "margin": one.path.margin,
        "spread": one.path.spread,
        "weights": _lists(one.path.weights),
    }
