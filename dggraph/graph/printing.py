"""A graph as text, as golden tests and reports of errors read it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which prints itself
    from dggraph.graph.ir import DynamicGraph


def format_graph(graph: "DynamicGraph") -> str:
    """Return a short, stable text: one line per stage and one per node.

    A node's line names the sources that may feed it, with `?` after those that are not static.
    """
    lines = [f"{graph.name}: {count_parts(graph)}"]
    for stage in graph.stages.values():
        edges = graph.edges(stage.name)
        lines.append(f"{stage.name}: {stage.residual}, {len(edges)} edges")
        for index, node in enumerate(graph.nodes(stage.name)):
            label = {"entry": "v0", "block": f"v{index}", "out": "out"}[node.kind]
            names = [f"v{i}" for i in range(len(graph.nodes(stage.name)))]
            short = {member.name: names[i] for i, member in enumerate(graph.nodes(stage.name))}
            sources = " ".join(
                short[edge.source]
                + ("" if edge.is_static else "?")
                + ("" if edge.kind == "add" else f":{edge.kind}")
                for edge in graph.incoming(node.name)
            )
            shape = "x".join(str(size) for size in node.shape)
            lines.append(
                f"  {label} {node.name} {shape} {node.macs}" + (f" <- {sources}" if sources else "")
            )
    return "\n".join(lines)


def count_parts(graph: "DynamicGraph") -> str:
    """Return the numbers of stages, routed blocks and candidate edges, in words."""
    return (
        f"{len(graph.stages)} stages, {graph.num_blocks} routed blocks, {graph.num_edges} candidate"
        " edges"
    )
