"""One image through a stage whose nodes decide one by one: floats instead of arrays of one row.

The same rules as `ops/liveness`, for a batch of one. A numpy call costs a microsecond whatever its
size, and a stage of ten edges needs twenty of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dggraph.ops.liveness import Topology
from dggraph.ops.stage_plans import Effects, add, are_equal, share_memory, sum_terms


def walk_stage(
    entry: Tensor,
    topology: Topology,
    threshold: float,
    decide: Callable[[int, Tensor | None], list[float]],
    run_block: Callable[[int, Tensor], Tensor],
    effects: Sequence[Effects],
) -> tuple[Tensor | None, list[float], list[float]]:
    """Run a stage on one image.

    Args:
        entry: (1, ...), features of v0.
        topology: the stage's edges.
        threshold: edges at or below it close.
        decide: takes a vertex and its output, None where it did not run; returns the raw weights
            of its outgoing edges.
        run_block: takes a vertex and its input.
        effects: per vertex from 1.

    Returns:
        The stage's output, None where no edge leads to it; per edge the weight that applied, 0
        where closed; and the raw weights.
    """
    outgoing, last = topology.outgoing(), topology.num_vertices - 1
    raw, weights = [0.0] * len(topology.sources), [0.0] * len(topology.sources)
    features: list[Any] = [entry] + [None] * last
    total, is_own = None, False
    before: tuple[tuple[int, int], ...] = ()
    for vertex in range(1, last + 1):
        row = decide(vertex - 1, features[vertex - 1])
        for edge, weight in zip(outgoing[vertex - 1], row, strict=True):
            raw[edge] = weight
        place = topology.incoming(vertex)
        live = [
            (edge, source)
            for edge, source in enumerate(topology.sources[place], place.start)
            if features[source] is not None
        ]
        terms = tuple((edge, source) for edge, source in live if not raw[edge] <= threshold)
        for edge, _ in terms:
            weights[edge] = raw[edge]
        if not terms and vertex == last and live:  # ties: the later node
            best = max(live, key=lambda term: (raw[term[0]], term[1]))
            terms, weights[best[0]] = (best,), 1.0
        if not terms:
            continue
        effect = effects[vertex - 1]
        pairs = tuple((edge, other) for (edge, _), (other, _) in zip(terms, before, strict=False))
        is_next = [s for _, s in terms[:-1]] == [s for _, s in before] and before
        if total is not None and is_next and are_equal(weights, pairs):
            edge, source = terms[-1]
            total, is_own = add(total, features[source], weights[edge], in_place=is_own), True
        else:
            total, is_own = sum_terms(terms, features, weights, is_written=effect.is_written)
        if vertex == last:
            return total, weights, raw
        before = terms
        output = features[vertex] = run_block(vertex, total)
        if effect.is_written:
            total = None
        elif is_own and (effect.is_kept or share_memory(output, total)):
            is_own = False
    return None, weights, raw
