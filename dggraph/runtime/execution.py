"""The sparse executor: every block runs on the instances that need it, and on no others.

1. The lowered graph was cut into a program (`compiler/cutting`). What lies outside the stages runs on the whole batch.
2. In a stage, a `stage` router decides everything at the entry, one look at the batch from the host; with `node` routers every node that ran
   decides its row. `ops/liveness` says which edges are open, as it does for the dense form.
3. Node j gathers the rows that reach it into a compact tensor (`ops/rows`), aggregates in the same pass, and its block runs on that. With a
   `stage` router only nodes that lead on to `out` run, else every live one.

Shape suffixes: B instances of the batch, R rows of one node, E edges.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dggraph.compiler.cutting import Piece, Program, StageProgram
from dggraph.errors import GateError
from dggraph.graph.ir import DynamicGraph
from dggraph.ops.aggregation import adapt
from dggraph.ops.gating import column
from dggraph.ops.liveness import Layout, is_live, leads_to_out, live_vertices, open_edges, open_output, settle
from dggraph.ops.rows import Places, Weights, concatenate_rows, sum_rows, take_rows, zeros


def run_sparse(program: Program, lowered: nn.Module, graph: DynamicGraph, scope: str, x: Tensor) -> tuple[Any, dict[str, Any]]:
    """Run `program` on `x`, (B, C, H, W), without gradients.

    Args:
        program: `lowered`, cut.
        lowered: owns every module.
        graph: names nodes in errors.
        scope: `node` or `stage`, where routers stand.

    Returns:
        What the lowered module returns: the backbone's output and {stage: (weights, raw)}, each (B, E).

    Raises:
        GateError: an edge weight is NaN; names the node whose router gave it.
    """
    values: dict[str, Any] = {program.input: x}
    gates: dict[str, Any] = {}
    for step, spent in program.steps:
        if isinstance(step, Piece):
            results = step.run(lowered, *[values[name] for name in step.inputs])
            values.update(zip(step.outputs, results, strict=True))
        else:
            values[step.plan.output], weights_BE, raw_BE = _run_stage(step, lowered, graph, scope, values)
            gates[step.plan.name] = (weights_BE, raw_BE)
        for name in spent:
            del values[name]
    gates |= {stage: (values[weights], values[raw]) for stage, (weights, raw) in program.dense_gates.items()}
    return program.output.run(lowered, *[values[name] for name in program.output.inputs]), gates


def refuse_nan(graph: DynamicGraph, stage: str, raw_BE: Tensor) -> None:
    """Raise a GateError for the first NaN among the weights of `stage`, naming edge and instance."""
    for instance, place in raw_BE.isnan().nonzero().tolist()[:1]:
        edge = graph.edges(stage)[place]
        raise GateError(
            f"the weight of edge {edge.source} -> {edge.target} is NaN for instance {instance}: the features of node "
            f"{edge.source!r} or its router are not finite. Look for a diverged training run or a broken input."
        )


def _run_stage(
    step: StageProgram, lowered: nn.Module, graph: DynamicGraph, scope: str, values: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    entry, name = values[step.plan.entry], step.plan.name
    owner = lowered.get_submodule(f"dg_{name}")
    decide = _StageRouter if scope == "stage" else _NodeRouters
    decisions = decide(step.layout, owner, entry, lambda raw_BE: refuse_nan(graph, name, raw_BE))
    features: list[Tensor | None] = [entry]
    row_of = np.full((step.layout.num_vertices, len(entry)), -1, dtype=np.int64)
    row_of[0] = np.arange(len(entry))
    last = step.layout.num_vertices - 1
    for vertex in range(1, last + 1):
        incoming_BE = decisions.weights_into(vertex)
        instances = np.arange(len(entry)) if vertex == last else decisions.instances_at(vertex)
        if len(instances) == 0 and vertex < last:
            features.append(None)
            decisions.ran(vertex, None, instances)
            continue
        row_of[vertex, instances] = np.arange(len(instances))
        block = step.plan.blocks[vertex - 1] if vertex < last else None
        writes = block.writes_input if block is not None else step.plan.writes_output
        new_input = _gather(step, vertex, features, row_of[:, instances], incoming_BE[instances], may_alias=not writes)
        if block is None:
            weights_BE, raw_BE = decisions.result()
            return new_input, weights_BE.to(entry.device), raw_BE.to(entry.device)
        kinds = {read.fx_node: read.kind for read in block.reads}
        piece = step.blocks[vertex - 1]
        reads = [_read(values, name, kinds[name], instances, len(entry)) for name in piece.inputs[1:]]
        (output,) = piece.run(lowered, new_input, *reads)
        features.append(output)
        decisions.ran(vertex, output, instances)
    raise AssertionError("a stage ends with `out`")


def _gather(
    step: StageProgram, vertex: int, features: Sequence[Tensor | None], row_of_VR: Places, weights_RE: Weights, *, may_alias: bool
) -> Tensor:
    """The input of `vertex` for its rows."""
    place = step.layout.incoming(vertex)
    sources, kinds = step.layout.sources[place], step.kinds[place]
    places_RE = row_of_VR[list(sources)].T
    incoming, entry = [features[source] for source in sources], features[0]
    assert entry is not None
    axis, wanted = step.channel_axis, step.num_channels[vertex]
    if kinds[0] == "concat":
        channels = [step.num_channels[source + 1] for source in sources]
        return concatenate_rows(incoming, channels, places_RE, weights_RE, axis)
    incoming = [
        adapt(one, wanted, axis) if kind == "adapter" and one is not None else one
        for one, kind in zip(incoming, kinds, strict=True)
    ]
    if all(one is None for one in incoming):
        shape = [len(weights_RE), *entry.shape[1:]]
        shape[axis] = wanted
        return zeros(shape, entry)
    return sum_rows(incoming, places_RE, weights_RE, may_alias=may_alias)


class _StageRouter:
    """Everything decided at the entry."""

    def __init__(self, layout: Layout, owner: nn.Module, entry: Tensor, check: Callable[[Tensor], None]) -> None:
        self.layout = layout
        self.raw_BE = owner.get_submodule("gate_0")(owner.get_submodule("router_0")(entry)).cpu()
        check(self.raw_BE)
        self.weights_BE = settle(self.raw_BE, layout, owner.get_buffer("threshold").cpu(), False)
        open_BE = self.weights_BE != 0
        self.useful_BV = (live_vertices(open_BE, layout) * leads_to_out(open_BE, layout)).numpy()

    def weights_into(self, vertex: int) -> Weights:
        """(B, E) of the edges into `vertex`."""
        weights: Weights = self.weights_BE[:, self.layout.incoming(vertex)].numpy()
        return weights

    def instances_at(self, vertex: int) -> Places:
        """The instances that `vertex` runs for."""
        return np.flatnonzero(self.useful_BV[:, vertex])

    def ran(self, vertex: int, output: Tensor | None, instances: Places) -> None:
        """Nothing to learn from a node's output."""

    def result(self) -> tuple[Tensor, Tensor]:
        """Settled and raw weights, (B, E)."""
        return self.weights_BE, self.raw_BE


class _NodeRouters:
    """Decided row by row, as nodes run. Columns are settled as the pass reaches them, with the same steps as the dense form."""

    def __init__(self, layout: Layout, owner: nn.Module, entry: Tensor, check: Callable[[Tensor], None]) -> None:
        self.layout, self.owner, self.check = layout, owner, check
        self.threshold = owner.get_buffer("threshold").cpu()
        self.num_instances = len(entry)
        self.rows: list[Tensor] = []
        self.raw: list[Tensor] = []
        self.settled: list[Tensor] = []
        self.live: list[Tensor | None] = [None]
        self.outgoing = [
            [edge for edge, source in enumerate(layout.sources) if source == vertex] for vertex in range(layout.num_vertices)
        ]
        self.ran(0, entry, np.arange(len(entry)))

    def weights_into(self, vertex: int) -> Weights:
        """(B, E) of the edges into `vertex`."""
        place = self.layout.incoming(vertex)
        sources = self.layout.sources[place]
        edges = range(place.start, place.stop)
        raw = column(self.rows, [(source, self.outgoing[source].index(edge)) for source, edge in zip(sources, edges, strict=True)])
        live = [self.live[source] for source in sources]
        weights_BE = open_edges(raw, live, self.threshold, False)
        if vertex == self.layout.num_vertices - 1:
            weights_BE = open_output(weights_BE, raw, live, False)
        else:
            self.live.append(is_live(weights_BE))
        self.raw.append(raw)
        self.settled.append(weights_BE)
        weights: Weights = weights_BE.numpy()
        return weights

    def instances_at(self, vertex: int) -> Places:
        """The instances that `vertex` runs for."""
        live_B = self.live[vertex]
        assert live_B is not None
        return np.flatnonzero(live_B.numpy())

    def ran(self, vertex: int, output: Tensor | None, instances: Places) -> None:
        """Let the router of `vertex` look at its output; the gate sees the whole batch, dead instances with logit 0."""
        gate = self.owner.get_submodule(f"gate_{vertex}")
        shape = (self.num_instances, len(self.outgoing[vertex]))
        if output is None:
            row_BE = gate(torch.zeros(shape))
        else:
            logits_RE = self.owner.get_submodule(f"router_{vertex}")(output)
            if len(instances) < self.num_instances:
                logits_BE = logits_RE.new_zeros(shape)
                logits_BE[torch.from_numpy(instances).to(logits_RE.device)] = logits_RE
            else:
                logits_BE = logits_RE
            row_BE = gate(logits_BE)
        self.rows.append(row_BE.cpu())
        if self.rows[-1].isnan().any():
            raw_BE = torch.zeros((self.num_instances, len(self.layout.sources)))
            raw_BE[:, self.outgoing[vertex]] = self.rows[-1].float()
            self.check(raw_BE)

    def result(self) -> tuple[Tensor, Tensor]:
        """Settled and raw weights, (B, E)."""
        return torch.cat(self.settled, 1), torch.cat(self.raw, 1)


def _read(values: dict[str, Any], name: str, kind: str, instances: Places, num_instances: int) -> Any:
    """A value from outside, as a block that runs on `instances` has to see it."""
    if kind == "rows":
        return len(instances)
    value = values[name]
    if kind == "batched" and isinstance(value, Tensor) and value.ndim and len(value) == num_instances:
        return take_rows(value, instances)
    return value
