"""One image through a stage whose nodes decide one by one: floats instead of arrays of one row.

The same rules as `ops/liveness`, for a batch of one. A numpy call costs a microsecond whatever its
size, and a stage of ten edges needs twenty of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dggraph.ops.liveness import Topology
from dggraph.ops.running_sum import Effects, RunningSum, Weight, continued


def walk_stage(
    entry: Tensor,
    topology: Topology,
    threshold: float,
    decide: Callable[[int, list[int], Tensor | None], list[float]],
    run_block: Callable[[int, Tensor], Tensor],
    effects: Sequence[Effects],
    settled: Callable[[float], float],
    parts: Mapping[int, Tensor],
) -> tuple[Tensor | None, list[float], list[float]]:
    """Run a stage on one image.

    Args:
        entry: (1, ...), features of v0.
        topology: the stage's edges.
        threshold: edges at or below it close.
        decide: takes a vertex, its outgoing edges, and its output, None if it did not run; returns
            the raw weights of these edges.
        run_block: takes a vertex and its input.
        effects: per vertex from 1.
        settled: takes the raw weight of an open edge; returns the weight that applies.
        parts: where edges have several weights, those that apply if it is open, (1, ...), for each
            edge that `decide` was asked for and whose source ran. Its raw weight is the largest.

    Returns:
        The stage's output, None where no edge leads to it; per edge the weight that applied, 0
        where closed; and the raw weights.
    """
    outgoing, last = topology.outgoing(), topology.num_vertices - 1
    raw, weights = [0.0] * len(topology.sources), [0.0] * len(topology.sources)
    factors: list[Weight] = list(weights)
    features: list[Any] = [entry] + [None] * last
    running = RunningSum()
    before: tuple[tuple[int, int], ...] = ()
    for vertex in range(1, last + 1):
        decided = outgoing[vertex - 1]
        row = decide(vertex - 1, decided, features[vertex - 1])
        for edge, weight in zip(decided, row, strict=True):
            raw[edge] = weight
        place = topology.incoming(vertex)
        live = [
            (edge, source)
            for edge, source in enumerate(topology.sources[place], place.start)
            if features[source] is not None
        ]
        terms = tuple((edge, source) for edge, source in live if not raw[edge] <= threshold)
        for edge, _ in terms:
            weights[edge] = settled(raw[edge])
            factors[edge] = parts.get(edge, weights[edge])
        if not terms and vertex == last and live:  # ties: the later node
            best = max(live, key=lambda term: (raw[term[0]], term[1]))
            terms, weights[best[0]], factors[best[0]] = (best,), 1.0, 1.0
        if not terms:
            continue
        effect = effects[vertex - 1]
        total = running.advance(terms, continued(terms, before), features, factors, effect)
        if vertex == last:
            return total, weights, raw
        before = terms
        output = features[vertex] = run_block(vertex, total)
        running.after_block(output, effect)
    return None, weights, raw
