"""The sparse executor: every block runs only on the images that need it.

1. The lowered graph was cut into a program (`compiler/partition`). The parts outside the stages run
   on the full batch.
2. A `stage` router decides everything at the entry, with one transfer of decisions to the host.
   With `node` routers, every node that ran decides its own row. `ops/liveness` determines which
   edges are open, as for the dense form.
3. Node j gathers the rows that reach it into a compact tensor (`ops/rows`) and aggregates in the
   same pass, and its block runs on the result. With a `stage` router only nodes that lead to `out`
   run, otherwise every live node.

Decisions are numpy arrays: at batch size 1, a hundred tiny torch ops would cost more than the
blocks they skip.

Shape suffixes: B images of the batch, R rows of one node, E edges, V vertices of a stage.
`instances` is None for all images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dggraph.compiler.lowered import StageRouting, routing_of
from dggraph.compiler.partition import Piece, Program, StageProgram
from dggraph.graph.ir import DynamicGraph
from dggraph.network.decisions import NodeDecisions, StageDecisions, refuse_nan, to_numpy
from dggraph.ops.aggregation import adapt
from dggraph.ops.rows import Places, Weights, concatenate_rows, sum_rows, take_rows, zeros
from dggraph.ops.stage_plans import run_plan, weights_for
from dggraph.ops.stage_walk import walk_stage


def run_sparse(
    program: Program, lowered: nn.Module, graph: DynamicGraph, x: Tensor
) -> tuple[Any, dict[str, Any]]:
    """Run `program` on `x`, (B, C, H, W), without gradients.

    Args:
        program: The pieces that `lowered` was cut into.
        lowered: The module that owns all weights.
        graph: The wired graph, for names in errors.
        x: Images, (B, C, H, W).

    Returns:
        The output of the lowered module: the backbone's output and {stage: (weights, raw)}, each
        (B, E).

    Raises:
        GateError: An edge weight is NaN; the error names the edge.
    """
    values: dict[str, Any] = {program.input: x}
    gates: dict[str, Any] = {}
    for step, spent in program.steps:
        if isinstance(step, Piece):
            results = step.run(lowered, *[values[name] for name in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
        else:
            values[step.plan.output], weights_BE, raw_BE = _run_stage(step, lowered, graph, values)
            gates[step.plan.name] = (weights_BE, raw_BE)
        for name in spent:
            del values[name]
    gates |= {
        stage: (values[weights], values[raw])
        for stage, (weights, raw) in program.dense_gates.items()
    }
    return program.output.run(lowered, *[values[name] for name in program.output.inputs]), gates


def _run_stage(
    step: StageProgram, lowered: nn.Module, graph: DynamicGraph, values: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    entry, name = values[step.plan.entry], step.plan.name
    routing = routing_of(lowered, name)
    decisions: StageDecisions | NodeDecisions
    if step.plan.scope == "stage":
        raw_BE = routing.gate(0)(routing.router(0)(entry))
        known_BE = to_numpy(raw_BE)
        if np.isnan(known_BE).any():
            refuse_nan(graph, name, raw_BE)
        found = _run_plan(step, lowered, values, routing, known_BE)
        if found is not None:
            new_output, weights_BE = found
            return new_output, torch.from_numpy(weights_BE).to(raw_BE), raw_BE
        decisions = StageDecisions(
            step.topology, known_BE, to_numpy(routing.threshold), raw_BE.dtype
        )
    else:
        if len(entry) == 1 and (walked := _walk(step, lowered, values, routing, graph)) is not None:
            return walked
        decisions = NodeDecisions(step.topology, routing, entry, graph, name)
    features: list[Tensor | None] = [entry]
    row_of_BV = np.empty((len(entry), step.topology.num_vertices), dtype=np.int64)
    row_of_BV[:, 0] = np.arange(len(entry))
    for vertex, (piece, writes_input, reads) in enumerate(step.blocks, start=1):
        runs_B = decisions.runs(vertex)
        instances = None if runs_B.all() else np.flatnonzero(runs_B)
        output = None
        if instances is None or len(instances):
            row_of_BV[:, vertex] = np.cumsum(runs_B) - 1
            new_input = _gather(
                step,
                vertex,
                features,
                row_of_BV,
                decisions.weights_BE,
                instances,
                may_alias=not writes_input,
            )
            for source in decisions.done_with(vertex):
                features[source] = None
            around = [_read(values, name, kind, instances, len(entry)) for name, kind in reads]
            (output,) = piece.run(lowered, new_input, *around)
        features.append(output)
        decisions.ran(vertex, output, instances)
    new_output = _gather(
        step,
        len(features),
        features,
        row_of_BV,
        decisions.weights_BE,
        None,
        may_alias=not step.plan.writes_output,
    )
    raw_BE = torch.from_numpy(decisions.raw_BE).to(entry.device, decisions.dtype)
    return (
        new_output,
        torch.from_numpy(decisions.weights_BE).to(entry.device, decisions.dtype),
        raw_BE,
    )


def _run_plan(
    step: StageProgram,
    lowered: nn.Module,
    values: dict[str, Any],
    routing: StageRouting,
    raw_BE: Weights,
) -> tuple[Tensor, Weights] | None:
    """Return output and weights (B, E) of a stage if all images share a pattern of open edges.

    The result is None if they do not, and for 16-bit features, whose sums are rounded term by term.
    """
    entry = values[step.plan.entry]
    if step.plans is None or not _is_wide(entry):
        return None
    plan = step.plans.find(raw_BE, to_numpy(routing.threshold))
    if plan is None:
        return None
    weights = weights_for(plan, raw_BE, entry)
    run_block = _block_runner(step, lowered, values)
    output = run_plan(plan, entry, weights, run_block, step.effects)
    weights_BE = np.where(plan.is_open_E, raw_BE, np.zeros((), raw_BE.dtype))
    if plan.forced is not None:
        weights_BE[:, plan.forced] = 1
    return output, weights_BE


def _walk(
    step: StageProgram,
    lowered: nn.Module,
    values: dict[str, Any],
    routing: StageRouting,
    graph: DynamicGraph,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Run one image through a stage of `node` routers: its output, weights and raw weights (1, E).

    The result is None if aggregation is not a plain sum, and for 16-bit features.
    """
    entry, name = values[step.plan.entry], step.plan.name
    if not (step.sums_only and _is_wide(entry)):
        return None
    rows: list[Tensor] = []

    def decide(vertex: int, edges: list[int], output: Tensor | None) -> list[float]:
        logits_BE = (
            rows[0].new_zeros(1, len(edges)) if output is None else routing.router(vertex)(output)
        )
        rows.append(routing.gate(vertex)(logits_BE))
        row: list[float] = rows[-1].tolist()[0]
        if any(weight != weight for weight in row):
            raw_BE = torch.zeros(1, len(step.topology.sources))
            raw_BE[:, edges] = rows[-1].float().cpu()
            refuse_nan(graph, name, raw_BE)
        return row

    threshold = float(routing.threshold)
    run_block = _block_runner(step, lowered, values)
    output, weights, raw = walk_stage(
        entry, step.topology, threshold, decide, run_block, step.effects
    )
    if output is None:
        output = _no_features(step, len(step.blocks) + 1, entry, 1)
    return output, rows[0].new_tensor([weights]), rows[0].new_tensor([raw])


def _no_features(step: StageProgram, vertex: int, entry: Tensor, num_rows: int) -> Tensor:
    """Return the zeros that `vertex` gets if no node leads to it."""
    shape = [num_rows, *entry.shape[1:]]
    shape[step.channel_axis] = step.num_channels[vertex]
    return zeros(shape, entry)


def _is_wide(entry: Tensor) -> bool:
    """Whether partial sums can be reused; 16-bit sums are rounded term by term."""
    return entry.dtype.itemsize >= 4 and not torch.is_autocast_enabled(entry.device.type)


def _block_runner(
    step: StageProgram, lowered: nn.Module, values: dict[str, Any]
) -> Callable[[int, Tensor], Tensor]:
    """Return a function of vertex and input that runs a block on the full batch."""
    num_instances = len(values[step.plan.entry])

    def run_block(vertex: int, x: Tensor) -> Tensor:
        piece, _, reads = step.blocks[vertex - 1]
        around = [_read(values, name, kind, None, num_instances) for name, kind in reads]
        output: Tensor = piece.run(lowered, x, *around)[0]
        return output

    return run_block


def _gather(
    step: StageProgram,
    vertex: int,
    features: Sequence[Tensor | None],
    row_of_BV: Places,
    weights_BE: Weights,
    instances: Places | None,
    *,
    may_alias: bool,
) -> Tensor:
    """Return the input of `vertex` for `instances`."""
    place = step.topology.incoming(vertex)
    sources, kinds = step.topology.sources[place], step.kinds[place]
    weights_RE = weights_BE[:, place] if instances is None else weights_BE[instances, place]
    incoming, entry = [features[source] for source in sources], features[0]
    assert entry is not None
    is_whole = instances is None and all(one is None or len(one) == len(entry) for one in incoming)
    places_RE = (
        None
        if is_whole
        else (row_of_BV if instances is None else row_of_BV[instances])[:, list(sources)]
    )
    axis, wanted = step.channel_axis, step.num_channels[vertex]
    if kinds[0] == "concat":
        channels = [step.num_channels[source + 1] for source in sources]
        return concatenate_rows(incoming, channels, places_RE, weights_RE, axis)
    incoming = [
        adapt(one, wanted, axis) if kind == "adapter" and one is not None else one
        for one, kind in zip(incoming, kinds, strict=True)
    ]
    if all(one is None for one in incoming):
        return _no_features(step, vertex, entry, len(weights_RE))
    return sum_rows(incoming, places_RE, weights_RE, may_alias=may_alias)


def _read(
    values: dict[str, Any], name: str, kind: str, instances: Places | None, num_instances: int
) -> Any:
    """Return a value from outside the stage, as seen by a block that runs on `instances`."""
    if kind == "rows":
        return num_instances if instances is None else len(instances)
    value = values[name]
    if (
        kind == "batched"
        and isinstance(value, Tensor)
        and value.ndim
        and len(value) == num_instances
    ):
        return take_rows(value, instances)
    return value
