"""Static paths without some of the backbone's blocks.

If x + F(x) is lifted into edges, a block is removed by closing its edges. In a chain, the successor
of the block reads its predecessor instead.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from dggraph.errors import InputError, WiringError
from dggraph.graph.ir import DynamicGraph


def skipped_weights(graph: DynamicGraph, stage: str, nodes: Collection[str]) -> Tensor:
    """Return weights for `pinned_gates` that follow the static path of `stage` without `nodes`.

    All edges of these blocks are closed. A vertex that then has no static source reads, at weight
    1, the last vertex before it that still runs. A removed block therefore acts as `nn.Identity` in
    the backbone, whether its residual is lifted or kept. A layer of a growing concat gives zeros.

    Args:
        graph: The wired graph.
        stage: The name of one of its stages.
        nodes: Names of blocks; none gives the static path.

    Returns:
        (E,) of 0 and 1, in the order of `graph.edges(stage)`.

    Raises:
        InputError: A name is not a block of the stage.
        WiringError: The edge past a block is not a candidate edge.
    """
    vertices, edges = [node.name for node in graph.nodes(stage)], graph.edges(stage)
    unknown = sorted(set(nodes) - set(vertices[1:-1]))
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is not a block of stage {stage!r}, which has"
            f" {', '.join(vertices[1:-1])}."
        )
    opens = {
        (edge.source, edge.target)
        for edge in edges
        if edge.is_static and not {edge.source, edge.target} & set(nodes)
    }
    candidates = {(edge.source, edge.target) for edge in edges}
    running = [vertices[0]]
    for target in vertices[1:]:
        if target in nodes:
            continue
        if not any((source, target) in opens for source in running):
            if (running[-1], target) not in candidates:
                raise WiringError(
                    f"{target} cannot run without"
                    f" {', '.join(node for node in vertices if node in nodes)}: the edge"
                    f" {running[-1]} -> {target} past them is not a candidate under this wiring."
                    ' Convert with wiring="complete" or a wider window.'
                )
            opens.add((running[-1], target))
        running.append(target)
    return torch.tensor(
        [float((edge.source, edge.target) in opens) for edge in edges], device="cpu"
    )
