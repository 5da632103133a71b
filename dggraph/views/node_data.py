"""Marks of a picture as node data of Model Explorer, which colours the nodes of an exported graph.

The format has one value and two colours a node, by the id that Model Explorer gives the node.
"""

import json
from collections.abc import Mapping, Sequence

from dggraph.views.annotations import DEAD_INK, NODE_LOOKS, NodeMark
from dggraph.views.picture import Picture

VALUES: Mapping[NodeMark, str] = {
    "live": "used",
    "unused": "reached, unused",
    "dead": "never reached",
    "first": "only in the first",
    "second": "only in the second",
    "both": "in both",
}


def write_node_data(picture: Picture, ids: Mapping[str, Sequence[str]]) -> str:
    """Return the JSON document.

    Args:
        picture: The path of an image, or the difference of two.
        ids: {block: ids of its nodes}; nodes of other parts get no colour.
    """
    values = dict(VALUES)
    if any(len(weights) == 2 for weights in picture.marks.weights.values()):
        values["dead"] = "in neither"
    results = {
        node: {
            "value": values[mark],
            "bgColor": NODE_LOOKS[mark].fill,
            "textColor": DEAD_INK if mark == "dead" else NODE_LOOKS[mark].stroke,
        }
        for block, nodes in ids.items()
        for mark in [picture.marks.nodes[block]]
        for node in nodes
    }
    return json.dumps({"name": picture.title, "results": results}, indent=1) + "\n"
