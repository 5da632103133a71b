"""The sparse executor: every block runs only on the images that need it.

1. The lowered graph was cut into a program (`compiler/partition`). The parts outside the stages run
   on the full batch.
2. A `stage` router decides everything at the entry, with one transfer of decisions to the host.
   Images with the same pattern of open edges run as one batch, by a plan that is kept for the
   pattern (`ops/stage_plans`). If a model of costs prefers rows (`ops/stage_costs`), 3. holds.
3. Node j gathers the rows that reach it into a compact tensor (`ops/rows`) and aggregates in the
   same pass, and its block runs on the result. With a `stage` router only nodes that lead to `out`
   run, otherwise every live node.
4. With `node` routers, every node that ran decides its own row. One image walks through the stage
   (`ops/stage_walk`), a batch runs by rows. `ops/liveness` determines which edges are open, as for
   the dense form.

Decisions are floats or numpy arrays: at batch size 1, a hundred tiny torch ops would cost more than
the blocks they skip.

Shape suffixes: B images of the batch, R rows of one node, E edges, V vertices of a stage.
`instances` is None for all images.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dggraph.compiler.lowered import routing_of
from dggraph.compiler.partition import (
    BoundRouting,
    Piece,
    Program,
    StageProgram,
    called_routing,
)
from dggraph.graph.ir import DynamicGraph
from dggraph.network.decisions import (
    ColumnDecisions,
    Decided,
    NodeDecisions,
    StageDecisions,
    decide_stage,
    refuse_nan,
)
from dggraph.network.gathering import gather, no_features, read_outside
from dggraph.ops.device_copies import number, to_device, to_lists
from dggraph.ops.gating import settled_weight
from dggraph.ops.granularity import applied_parts, largest, shrink_parts
from dggraph.ops.kernels import empty_rows
from dggraph.ops.rows import Places, take_rows
from dggraph.ops.stage_costs import choose_way
from dggraph.ops.stage_plans import PatternPlan, run_plan, weights_for
from dggraph.ops.stage_walk import walk_stage


def run_sparse(
    program: Program,
    lowered: nn.Module,
    graph: DynamicGraph,
    x: Tensor,
    gates: dict[str, Any] | None = None,
) -> Any:
    """Run `program` on `x`, (B, C, H, W), without gradients.

    Args:
        program: The pieces that `lowered` was cut into.
        lowered: The module that owns all weights.
        graph: The wired graph, for names in errors.
        x: Images, (B, C, H, W).
        gates: If given, it gets {stage: (weights, raw)}, each (B, E).

    Returns:
        The backbone's output.

    Raises:
        GateError: An edge weight is NaN; the error names the edge.
    """
    values: dict[str, Any] = {program.input: x}
    for step, spent in program.steps:
        if isinstance(step, Piece):
            results = step.run(lowered, *[values[name] for name in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
        else:
            values[step.plan.output] = run_stage(step, lowered, graph, values, gates)
        for name in spent:
            del values[name]
    if gates is not None:
        for stage, names in program.dense_gates.items():
            gates[stage] = tuple(values[name] for name in names)
    return program.output.run(lowered, *[values[name] for name in program.output.inputs])


def run_stage(
    step: StageProgram,
    lowered: nn.Module,
    graph: DynamicGraph,
    values: dict[str, Any],
    gates: dict[str, Any] | None,
) -> Tensor:
    """Run one stage on `values`, and return its output; see `run_sparse` for the arguments."""
    entry, name = values[step.plan.entry], step.plan.name
    routing = step.routing or called_routing(routing_of(lowered, name))
    if step.plan.scope == "stage":
        decided = decide_stage(routing, entry)
        for row in decided.rows:
            if isnan(sum(row)):
                refuse_nan(graph, name, torch.tensor(decided.rows, device="cpu"))
        plans = _plans_of(step, decided, entry)
        if plans is not None:
            rows = decided.rows
            if step.plan.shrinks:
                settled = settled_weight(decided.threshold, shrinks=True)
                rows = [list(map(settled, row)) for row in rows]
            parts = decided.parts
            if parts is not None and step.plan.shrinks:
                parts = shrink_parts(parts, decided.threshold)
            if gates is not None:
                weights_BE = [plan.weights(row) for plan, row in zip(plans, rows, strict=True)]
                found = _gates(weights_BE, decided.rows, decided.dtype, entry.device)
                gates[name] = _with_parts(step, found, decided.parts, decided.threshold)
            if len(plans) > 1 and len(set(plans)) > 1:
                return _run_groups(step, lowered, values, plans, rows, parts)
            run_block = step.run_block or _block_runner(step, lowered, values, None)
            weights = weights_for(plans[0], rows, entry, parts)
            return run_plan(plans[0], entry, weights, run_block, step.effects)
        decisions: StageDecisions | NodeDecisions = StageDecisions(
            step.topology, decided, shrinks=step.plan.shrinks
        )
    elif is_walked(step) and len(entry) == 1:
        return _walk(step, lowered, graph, values, routing, gates)
    else:
        kind = ColumnDecisions if step.plan.scope == "column" else NodeDecisions
        decisions = kind(
            step.topology,
            routing_of(lowered, name),
            entry,
            graph,
            name,
            shrinks=step.plan.shrinks,
        )
    output = _run_rows(step, lowered, values, decisions)
    if gates is not None:
        found = _gates(decisions.weights_BE, decisions.raw_BE, decisions.dtype, entry.device)
        gates[name] = _with_parts(step, found, decisions.parts, float(decisions.threshold))
    return output


def is_walked(step: StageProgram) -> bool:
    """Whether a single image walks through the stage, deciding in floats, see `stage_walk`."""
    return step.sums_only and step.plan.scope == "node"


def _plans_of(step: StageProgram, decided: Decided, entry: Tensor) -> list[PatternPlan] | None:
    """Return the plan of each image, or None if blocks should run on rows instead.

    That is so where no edges lead to `out`, and, if images have several patterns, where rows are
    cheaper and where a block may see how often it is called, such as one with hooks. On a GPU each
    call costs as much as many rows, so blocks run once.
    """
    if step.plans is None or not decided.rows:
        return None
    plans = []
    for row in decided.rows:
        plan = step.plans.find(row, decided.threshold)
        if plan is None:
            return None
        plans.append(plan)
    if len(plans) > 1 and len(patterns := Counter(plans)) > 1:
        may_split = entry.device.type == "cpu" and not any(one.is_kept for one in step.effects[:-1])
        if not may_split or choose_way(step.sizes, patterns, entry) == "rows":
            return None
    return plans


def _gates(
    weights_BE: Any, raw_BE: Any, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Return weights and raw weights of the host, arrays or lists, as tensors on `device`."""
    return tuple(
        to_device(torch.as_tensor(one, dtype=dtype, device="cpu"), device)
        for one in (weights_BE, raw_BE)
    )


def _with_parts(
    step: StageProgram, gates: tuple[Tensor, ...], parts_BEP: Tensor | None, threshold: float
) -> tuple[Tensor, ...]:
    """Return `gates`, and where edges have several weights all of them, settled as those are."""
    if parts_BEP is None:
        return gates
    weights_BE, raw_BE = gates
    shrinks = step.plan.shrinks
    return weights_BE, raw_BE, applied_parts(parts_BEP, raw_BE, weights_BE, threshold, shrinks)


def _run_groups(
    step: StageProgram,
    lowered: nn.Module,
    values: dict[str, Any],
    plans: Sequence[PatternPlan],
    rows: Sequence[Sequence[float]],
    parts_BEP: Tensor | None,
) -> Tensor:
    """Run the images of each pattern as a batch of their own."""
    instances_of: dict[PatternPlan, list[int]] = {}
    for instance, plan in enumerate(plans):
        instances_of.setdefault(plan, []).append(instance)
    output: Tensor | None = None
    for plan, instances in instances_of.items():
        index, own = np.asarray(instances), [rows[b] for b in instances]
        entry = take_rows(values[step.plan.entry], index)
        parts = None if parts_BEP is None else take_rows(parts_BEP, index)
        run_block = _block_runner(step, lowered, values, index)
        weights = weights_for(plan, own, entry, parts)
        part = run_plan(plan, entry, weights, run_block, step.effects)
        if output is None:
            output = empty_rows(len(rows), part, part.dtype)
        dtype = torch.promote_types(output.dtype, part.dtype)  # under autocast they may differ
        output = output.to(dtype)
        output.index_copy_(
            0, to_device(torch.tensor(instances, device="cpu"), part.device), part.to(dtype)
        )
    assert output is not None
    return output


def _walk(
    step: StageProgram,
    lowered: nn.Module,
    graph: DynamicGraph,
    values: dict[str, Any],
    routing: BoundRouting,
    gates: dict[str, Any] | None,
) -> Tensor:
    """Run one image through a stage of `node` routers whose edges all add."""
    entry, name = values[step.plan.entry], step.plan.name
    dtype, threshold = torch.float32, number(routing.threshold)
    raw_parts, parts = dict[int, Tensor](), dict[int, Tensor]()

    def decide(vertex: int, edges: list[int], output: Tensor | None) -> list[float]:
        nonlocal dtype
        if output is not None and vertex in routing.constant:
            row = routing.constant[vertex]
        elif output is not None and vertex in routing.decide_one:
            row = routing.decide_one[vertex](output)
        elif output is None and step.plan.granularity != "edge":  # nothing reads it
            row = [0.0] * len(edges)
        else:
            if output is None:  # a dead node: logit 0
                gate = routing_of(lowered, name).gate(vertex)
                raw_1E = gate(torch.zeros(1, len(edges), dtype=dtype, device=entry.device))
            else:
                raw_1E = routing.decide[vertex](output)
                if raw_1E.ndim > 2:
                    keep_parts(edges, raw_1E, output)
                    raw_1E = largest(raw_1E)
            ((row,),), dtype = to_lists(raw_1E), raw_1E.dtype
        if isnan(sum(row)):
            known_1E = torch.zeros(1, len(step.topology.sources), device="cpu")
            known_1E[:, edges] = torch.tensor(row, device="cpu")
            refuse_nan(graph, name, known_1E)
        return row

    def keep_parts(edges: list[int], raw_1EP: Tensor, output: Tensor) -> None:
        applied_1EP = shrink_parts(raw_1EP, threshold) if step.plan.shrinks else raw_1EP
        raw_parts.update(zip(edges, raw_1EP.unbind(1), strict=True))
        parts.update(zip(edges, applied_1EP.to(output.dtype).unbind(1), strict=True))

    output, weights, raw = walk_stage(
        entry,
        step.topology,
        threshold,
        decide,
        step.run_block or _block_runner(step, lowered, values, None),
        step.effects,
        settled_weight(threshold, shrinks=step.plan.shrinks),
        parts,
    )
    if output is None:
        output = no_features(step, len(step.blocks) + 1, entry, 1)
    if gates is not None:
        found = _gates([weights], [raw], dtype, entry.device)
        every = None
        if raw_parts:
            none = torch.zeros_like(next(iter(raw_parts.values())))
            every = torch.stack([raw_parts.get(edge, none) for edge in range(len(raw))], 1)
        gates[name] = _with_parts(step, found, every, threshold)
    return output


def _run_rows(
    step: StageProgram,
    lowered: nn.Module,
    values: dict[str, Any],
    decisions: StageDecisions | NodeDecisions,
) -> Tensor:
    """Run each block on the rows of the images that reach it."""
    entry = values[step.plan.entry]
    features: list[Tensor | None] = [entry]
    row_of_BV = np.empty((len(entry), step.topology.num_vertices), dtype=np.int64)
    row_of_BV[:, 0] = np.arange(len(entry))
    for vertex, (piece, writes_input, reads) in enumerate(step.blocks, start=1):
        runs_B = decisions.runs(vertex)
        instances = None if runs_B.all() else np.flatnonzero(runs_B)
        output = None
        if instances is None or len(instances):
            row_of_BV[:, vertex] = np.cumsum(runs_B) - 1
            new_input = gather(
                step,
                lowered,
                vertex,
                features,
                row_of_BV,
                decisions,
                instances,
                may_alias=not writes_input,
            )
            for source in decisions.done_with(vertex):
                features[source] = None
            around = [
                read_outside(values, name, kind, instances, len(entry)) for name, kind in reads
            ]
            (output,) = piece.run(lowered, new_input, *around)
        features.append(output)
        decisions.ran(vertex, output, instances)
    return gather(
        step,
        lowered,
        len(features),
        features,
        row_of_BV,
        decisions,
        None,
        may_alias=not step.plan.writes_output,
    )


def _block_runner(
    step: StageProgram, lowered: nn.Module, values: dict[str, Any], instances: Places | None
) -> Callable[[int, Tensor], Tensor]:
    """Return a function of vertex and input that runs a block on the rows of `instances`."""
    num_instances = len(values[step.plan.entry])

    def run_block(vertex: int, x: Tensor) -> Tensor:
        piece, _, reads = step.blocks[vertex - 1]
        around: Sequence[Any] = ()
        if reads:
            around = [
                read_outside(values, name, kind, instances, num_instances) for name, kind in reads
            ]
        output: Tensor = piece.run(lowered, x, *around)[0]
        return output

    return run_block
