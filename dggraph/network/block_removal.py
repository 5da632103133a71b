"""Static paths that leave blocks out: what remains when the backbone does without them.

With x + F(x) lifted into edges a block is left out by closing its edges; in a chain its successor
reads its predecessor instead.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from dggraph.errors import InputError, WiringError
from dggraph.graph.ir import DynamicGraph


def skipped_weights(graph: DynamicGraph, stage: str, nodes: Collection[str]) -> Tensor:
    """The static path of `stage` without the blocks `nodes`, for `pinned_gates`.

    Every edge of theirs closes. A vertex that has no static source left reads, at weight 1, the
    last vertex before it that still runs. So a lifted block is `nn.Identity` in the backbone, a
    kept one too, and a layer of a growing concat gives zeros.

    Args:
        graph: what may connect.
        stage: one of its stages.
        nodes: names of blocks; none gives the static path.

    Returns:
        (E,) of 0 and 1, in the order of `graph.edges(stage)`.

    Raises:
        InputError: a name is not a block of the stage.
        WiringError: the edge past a block is not a candidate.
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
                    f"{target} cannot do without"
                    f" {', '.join(node for node in vertices if node in nodes)}: the edge"
                    f" {running[-1]} -> {target} past them is not a candidate under this wiring."
                    ' Convert with wiring="complete", or a wider window.'
                )
            opens.add((running[-1], target))
        running.append(target)
    return torch.tensor(
        [float((edge.source, edge.target) in opens) for edge in edges], device="cpu"
    )
