"""A picture as a JSON document: the same nodes, edges and marks, for programs."""

import json

from dggraph.views.picture import Picture


def write_json(picture: Picture) -> str:
    """One document; edges carry one weight for a path, two for a difference, none for a graph.
    ASCII, so that no reader is fooled.
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
