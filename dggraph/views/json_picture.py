"""A picture as a JSON document, with its nodes, edges and marks."""

import json

from dggraph.views.picture import Picture


def write_json(picture: Picture) -> str:
    """Return the JSON document.

    Edges have one weight for a path, two for a difference, and none for a graph. The text is ASCII,
    so no character in it can mislead a reader.
    """
    graph, marks = picture.graph, picture.marks
    stages = [
        {
            "name": stage.name,
            "residual": stage.residual,
            "nodes": [
                {
                    "name": node.name,
                    "module_path": node.module_path,
                    "kind": node.kind,
                    "shape": node.shape,
                    "macs": node.macs,
                }
                | {"mark": marks.nodes[node.name]}
                for node in graph.nodes(stage.name)
            ],
            "edges": [
                {"source": edge.source, "target": edge.target, "is_static": edge.is_static}
                | {
                    "mark": marks.edges[edge.source, edge.target],
                    "weights": marks.weights.get((edge.source, edge.target), ()),
                }
                for edge in graph.edges(stage.name)
            ],
        }
        for stage in graph.stages.values()
    ]
    heading = {"title": picture.title, "facts": picture.facts, "warning": picture.warning}
    return json.dumps({"graph": graph.name} | heading | {"stages": stages}, indent=1) + "\n"
