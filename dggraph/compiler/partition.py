"""Cut a lowered graph into a program: pieces outside the stages, and one piece for each block.

The functions take the LoweredModule as their first argument, so hooks, swapped heads and new
weights take effect, and nothing is registered twice. Steps are ordered so that every value is
computed before it is read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from dggraph.compiler.aliasing import may_overwrite
from dggraph.compiler.contexts import called_modules
from dggraph.compiler.edge_writer import stage_topology
from dggraph.compiler.lowered import LoweredModule, StageRouting
from dggraph.compiler.naming import read_taken_names_
from dggraph.compiler.planning import (
    NEEDED,
    BlockPlan,
    ReadKind,
    StagePlan,
    batch_norms,
    mark_needed,
)
from dggraph.graph.ir import DynamicGraph, EdgeKind
from dggraph.ops.decisions import Decide, DecideOne, called_decision
from dggraph.ops.liveness import Topology
from dggraph.ops.running_sum import Effects
from dggraph.ops.stage_costs import BlockSize
from dggraph.ops.stage_plans import KeptPlans, StagePlans


@dataclass(frozen=True, slots=True)
class Piece:
    """Some fx nodes as a function.

    It takes the LoweredModule and the values of `inputs`, and returns the values of `outputs`.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., Any]
    graph: fx.Graph
    """The graph that `run` executes."""
    keeps_nothing: bool = False
    """Whether it certainly keeps no reference to its inputs."""
    is_fresh: bool = False
    """Whether its output is certainly no view of an input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgram:
    """One stage whose blocks run on their own."""

    plan: StagePlan
    topology: Topology
    kinds: tuple[EdgeKind, ...]
    """One for each edge."""
    channel_axis: int
    num_channels: tuple[int, ...]
    """For each vertex, the channels of the features aggregated into it; 0 for v0."""
    blocks: tuple["BlockProgram", ...]
    sizes: tuple[BlockSize, ...]
    """One for each block."""
    sums_only: bool
    """Whether nodes read plain weighted sums: no concatenations, adapters or additive sums."""
    plans: StagePlans | None
    """For each pattern of open edges, what to run.

    None unless one router decides a stage of plain sums.
    """
    effects: tuple[Effects, ...]
    """One for each vertex from 1."""
    routing: "BoundRouting | None" = None
    """The routers, gates and threshold where the program is inlined."""
    run_block: Callable[[int, Tensor], Tensor] | None = None
    """Takes a vertex and its input; for an inlined program whose blocks read nothing else."""


class BoundRouting(NamedTuple):
    """The routing of one stage as functions and tensors instead of modules."""

    decide: Mapping[int, Decide]
    """For each vertex with a router."""
    decide_one: Mapping[int, DecideOne]
    """For vertices whose router decides about a single image in a faster form."""
    constant: Mapping[int, list[float]]
    """For vertices whose router gives every image the same raw weights."""
    threshold: Tensor


class BlockProgram(NamedTuple):
    """One block of a stage."""

    piece: Piece
    """Takes the block's input, then the values that it reads from outside."""
    writes_input: bool
    reads: tuple[tuple[str, ReadKind], ...]
    """The values that it reads from outside, in order."""


@dataclass(frozen=True, slots=True)
class Program:
    """A lowered graph, cut into steps."""

    steps: tuple[tuple[Piece | StageProgram, tuple[str, ...]], ...]
    """What to run, each with the values that no later step reads."""
    input: str
    output: Piece
    """Builds the structure that the backbone returns."""
    dense_gates: dict[str, tuple[str, ...]]
    """For each stage that is `dense_only`, the names of its gates' values, see `StagePlan`."""
    norms: tuple[tuple[str, ...], ...]
    """Paths, split at dots, of the batch norms in blocks that run on some images of a batch."""

    def kept_plans(self) -> dict[str, KeptPlans]:
        """Return what the stages that have plans keep of them."""
        return {
            step.plan.name: step.plans.kept()
            for step, _ in self.steps
            if isinstance(step, StageProgram) and step.plans is not None
        }

    code: str
    """The generated code that it was cut from; if this changes, the program must be cut again."""
    plan: tuple[StagePlan, ...]
    """The plan that it was cut along; if this changes, the program must be cut again."""


def cut(lowered: LoweredModule, graph: DynamicGraph, plan: Sequence[StagePlan]) -> Program:
    """Cut `lowered` along `plan`.

    Stages that are `dense_only` stay part of the pieces outside.
    """
    mark_needed(lowered.graph)  # hooks add ops
    by_name = {fx_node.name: fx_node for fx_node in lowered.graph.nodes}
    stages = [stage for stage in as_modules_are(lowered, plan) if not stage.dense_only]
    programs = {stage.name: _stage_program(by_name, graph, stage) for stage in stages}
    members = {
        name
        for stage in stages
        for name in (*stage.own, *(n for block in stage.blocks for n in block.fx_nodes))
    }
    reads = {stage.name: _reads(stage, by_name) for stage in stages}
    whole = [stage for stage in plan if stage.name not in programs]
    dense_gates = {stage.name: stage.gates for stage in whole}
    output = _output(next(fx_node for fx_node in by_name.values() if fx_node.op == "output"))
    wanted = [*output.inputs, *(name for names in dense_gates.values() for name in names)]
    (start,) = (fx_node for fx_node in by_name.values() if fx_node.op == "placeholder")
    ordered: list[list[fx.Node] | StagePlan] = [[]]
    ends = {stage.output: stage for stage in stages}
    # A stage runs where it ends: every value that its blocks read is computed by then.
    for fx_node in by_name.values():
        if fx_node.name in ends:
            ordered += [ends[fx_node.name], []]
        elif (
            fx_node.name not in members
            and NEEDED in fx_node.meta
            and fx_node.op not in ("placeholder", "output")
        ):
            ordered[-1].append(fx_node)  # type: ignore[union-attr]
    ordered = [part for part in ordered if part]
    blocks = [block for stage in stages for block in stage.blocks]
    called = set(called_modules(by_name[name] for block in blocks for name in block.fx_nodes))
    norms = tuple(
        tuple(path.split(".")) for module in sorted(called) for path in batch_norms(lowered, module)
    )
    return Program(
        _steps(ordered, programs, reads, wanted),
        start.name,
        output,
        dense_gates,
        norms,
        lowered.code,
        tuple(plan),
    )


def as_modules_are(lowered: LoweredModule, plan: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """Return `plan` for the current modules: a module replaced since may write into its input."""
    own = {name for stage in plan for name in stage.own}
    by_name = {fx_node.name: fx_node for fx_node in lowered.graph.nodes}
    traced = _Traced(lowered, {name: one for name, one in by_name.items() if name not in own})

    def revised(stage: StagePlan) -> StagePlan:
        inside = {*stage.own, *(name for block in stage.blocks for name in block.fx_nodes)}
        blocks = tuple(
            replace(
                block,
                writes_input=block.writes_input or may_overwrite(traced, by_name[block.input]),
            )
            for block in stage.blocks
        )
        why = "something outside the stage may overwrite its input"
        is_whole = stage.dense_only or may_overwrite(traced, by_name[stage.entry], inside)
        return replace(
            stage,
            blocks=blocks,
            writes_output=stage.writes_output or may_overwrite(traced, by_name[stage.output]),
            dense_only=stage.dense_only or (why if is_whole else ""),
        )

    return tuple(map(revised, plan))


class _Traced(NamedTuple):
    """See `aliasing.Traced`."""

    module: nn.Module
    by_name: dict[str, fx.Node]


def piece(
    fx_nodes: Sequence[fx.Node], outputs: Iterable[str], first: Sequence[fx.Node] = ()
) -> Piece:
    """Return `fx_nodes` as a function.

    Args:
        fx_nodes: in execution order.
        outputs: names of the fx nodes whose values it returns.
        first: values from outside that come first in `inputs`.
    """
    graph, twins = fx.Graph(), dict[fx.Node, fx.Node]()
    inside = set(fx_nodes)
    reads = [
        *first,
        *(read for fx_node in fx_nodes for read in fx_node.all_input_nodes if read not in inside),
    ]
    values = [read for read in dict.fromkeys(reads) if read.op != "get_attr"]
    for read in values:
        twins[read] = graph.placeholder(read.name)
    for fx_node in [*(read for read in dict.fromkeys(reads) if read.op == "get_attr"), *fx_nodes]:
        twins[fx_node] = graph.node_copy(fx_node, twins.__getitem__)
    by_name = {fx_node.name: twin for fx_node, twin in twins.items()}
    names = tuple(outputs)
    graph.output(tuple(by_name[name] for name in names))
    return Piece(tuple(read.name for read in values), names, function_of(graph), graph)


def _stage_program(
    by_name: dict[str, fx.Node], graph: DynamicGraph, stage: StagePlan
) -> StageProgram:
    position = graph.stages[stage.name].channel_position
    shapes = [node.shape for node in graph.nodes(stage.name)]
    topology = stage_topology(graph, stage.name)
    kinds = tuple(edge.kind for edge in graph.edges(stage.name))
    blocks = tuple(_block(by_name, block) for block in stage.blocks)
    sizes = tuple(
        BlockSize(_num_calls(block.piece.graph), node.macs / _positions(node.shape, position) / 1e3)
        for block, node in zip(blocks, graph.nodes(stage.name)[1:-1], strict=True)
    )
    sums_only = set(kinds) == {"add"} and stage.aggregation == "sum"
    return StageProgram(
        plan=stage,
        topology=topology,
        kinds=kinds,
        channel_axis=graph.stages[stage.name].channel_axis,
        num_channels=(0, *(shape[position] for shape in shapes[:-1])),
        blocks=blocks,
        sizes=sizes,
        effects=effects_of(stage, blocks),
        sums_only=sums_only,
        plans=StagePlans(topology) if sums_only and stage.scope == "stage" else None,
    )


def _num_calls(graph: fx.Graph) -> int:
    """Return the number of calls in `graph`."""
    return sum(fx_node.op.startswith("call_") for fx_node in graph.nodes)


def _positions(shape: Sequence[int], channel_position: int) -> int:
    """Return the number of elements of one channel."""
    return prod(shape) // shape[channel_position]


def called_routing(routing: StageRouting) -> BoundRouting:
    """Return `routing` with its modules called, whatever they are."""
    decide = {vertex: called_decision(router, gate) for vertex, router, gate in routing.deciders()}
    return BoundRouting(decide, {}, {}, routing.threshold)


def effects_of(plan: StagePlan, blocks: Iterable[BlockProgram]) -> tuple[Effects, ...]:
    """Return, for each vertex from 1, what may happen to its input."""
    inside = [
        Effects(
            is_written=block.writes_input,
            is_kept=not block.piece.keeps_nothing,
            may_return=not block.piece.is_fresh,
        )
        for block in blocks
    ]
    return (*inside, Effects(plan.writes_output, True))


def _block(by_name: dict[str, fx.Node], block: BlockPlan) -> BlockProgram:
    alone = piece(
        [by_name[name] for name in block.fx_nodes], (block.output,), first=[by_name[block.input]]
    )
    kinds = {read.fx_node: read.kind for read in block.reads}
    return BlockProgram(
        alone, block.writes_input, tuple((name, kinds[name]) for name in alone.inputs[1:])
    )


def _reads(stage: StagePlan, by_name: dict[str, fx.Node]) -> set[str]:
    """Return the values that a stage needs from outside, except `get_attr`s."""
    names = {
        stage.entry,
        *(read.fx_node for block in stage.blocks for read in block.reads if read.kind != "rows"),
    }
    return {name for name in names if by_name[name].op != "get_attr"}


def _output(output_node: fx.Node) -> Piece:
    """Return the piece that builds the backbone's returned structure from its values."""
    structure = output_node.args[0][0]  # type: ignore[index]
    found: list[fx.Node] = []
    fx.map_arg(structure, found.append)
    graph = fx.Graph()
    twins = {fx_node: graph.placeholder(fx_node.name) for fx_node in dict.fromkeys(found)}
    graph.output(fx.map_arg(structure, twins.__getitem__))
    return Piece(tuple(fx_node.name for fx_node in twins), (), function_of(graph), graph)


def function_of(graph: fx.Graph) -> Callable[..., Any]:
    """Return `graph` as a function of the module that owns its targets, and of its inputs."""
    read_taken_names_(graph)
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<dggraph>", "exec"), scope)
    function: Callable[..., Any] = scope["forward"]
    return function


def _steps(
    ordered: Sequence["list[fx.Node] | StagePlan"],
    programs: dict[str, StageProgram],
    reads: dict[str, set[str]],
    wanted: list[str],
) -> tuple[tuple[Piece | StageProgram, tuple[str, ...]], ...]:
    """Return the steps of a program, each with the values that no later step reads.

    The segments are visited backward, so the values that later steps read are known.
    """
    needed = set(wanted)
    steps: list[tuple[Piece | StageProgram, tuple[str, ...]]] = []
    for part in reversed(ordered):
        if isinstance(part, StagePlan):
            step: Piece | StageProgram = programs[part.name]
            inputs, made = reads[part.name], {part.output}
        else:
            made = {fx_node.name for fx_node in part}
            step = piece(part, [fx_node.name for fx_node in part if fx_node.name in needed])
            inputs = set(step.inputs)
        steps.append((step, tuple(sorted(inputs - needed))))
        needed = (needed - made) | inputs
    return tuple(reversed(steps))
