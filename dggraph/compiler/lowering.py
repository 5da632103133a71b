"""Lower a wired graph into one flat `fx.GraphModule`, stage by stage (see `stage_writer`).

The module returns the backbone's output and, for each stage, the edge weights after and before the
threshold, in the graph's edge order; and all parts of edges that have several weights.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dggraph.compiler.aliasing import is_effect
from dggraph.compiler.calls import mark_features
from dggraph.compiler.capture import keep
from dggraph.compiler.contexts import restore_contexts
from dggraph.compiler.edge_writer import Deciders
from dggraph.compiler.lowered import LoweredModule, StageRouting, adopt_, routing_name
from dggraph.compiler.planning import EFFECT, StagePlan, dense_where_read, mark_needed
from dggraph.compiler.printing import short_names
from dggraph.compiler.regions import Flow
from dggraph.compiler.residuals import StageAdds
from dggraph.compiler.returns import restore_structure
from dggraph.compiler.stage_writer import StageWriter
from dggraph.compiler.stages import FoundStage
from dggraph.errors import LoweringError
from dggraph.graph.ir import DynamicGraph


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered network and the plan to run its blocks on their own."""

    module: LoweredModule
    plan: tuple[StagePlan, ...]


def lower(
    flow: Flow,
    found: Sequence[FoundStage],
    adds: Sequence[StageAdds],
    *,
    graph: DynamicGraph,
    deciders: Deciders,
) -> Lowered:
    """Rewire the backbone behind `flow` into `graph`.

    The result shares the backbone's modules, which are not copied.

    Args:
        flow: the traced backbone.
        found: its stages, in the order of `graph.stages`.
        adds: the identity adds of each stage.
        graph: the wired graph.
        deciders: routers, gates and threshold.

    Raises:
        LoweringError: the backbone has an attribute whose name a stage's routers need.
    """
    lowered = copy.deepcopy(flow.trace.graph)
    root = nn.Module()
    adopt_(root, flow.module)
    by_name = {fx_node.name: fx_node for fx_node in lowered.nodes}
    for guard in flow.cache_guards:
        _, answer, place = guard.args
        by_name[guard.name].args = (answer, answer, place)
    mark_features(by_name[fx_node.name] for fx_node in flow.activations)
    with lowered.inserting_after(next(n for n in lowered.nodes if n.op == "placeholder")):
        training = lowered.create_node("get_attr", "training", name="training")
    gates: dict[str, Any] = {}
    plan: list[StagePlan] = []
    for name, stage, own_adds in zip(graph.stages, found, adds, strict=True):
        own_name, routing = routing_name(name), StageRouting(deciders.threshold)
        if hasattr(root, own_name):
            raise LoweringError(
                f"the backbone already has an attribute {own_name!r}, where the routers of a stage"
                " are stored; rename it."
            )
        root.add_module(own_name, routing)
        writer = StageWriter(
            flow, lowered, by_name, stage, own_adds, graph, name, deciders, routing, training
        )
        plan.append(writer.write())
        gates[name] = tuple(by_name[gate] for gate in plan[-1].gates)
    output = next(iter(reversed(lowered.nodes)))
    with lowered.inserting_before(output):
        structure = (
            output.args[0]
            if flow.trace.returned is None
            else restore_structure(lowered, flow.trace.returned, output.args[0])
        )
    output.args, output.type = ((structure, gates),), None
    for fx_node in flow.order:
        if is_effect(flow, fx_node) and fx_node.name in by_name:
            by_name[fx_node.name].meta[EFFECT] = True
    mark_needed(lowered)
    plan = [stage if stage.dense_only else dense_where_read(lowered, stage) for stage in plan]
    _write_keeps(lowered)
    restore_contexts(lowered)
    lowered.set_codegen(short_names())
    return Lowered(LoweredModule(root, lowered), tuple(plan))


def _write_keeps(graph: fx.Graph) -> None:
    """Replace each `keep`, a placeholder for `self.aux = y` in forward, by an op that does it."""
    for fx_node in list(graph.nodes):
        if fx_node.target is keep:
            value, path, name = fx_node.args
            with graph.inserting_before(fx_node):
                owner = graph.create_node(
                    "get_attr", path or "dg_self", name=f"{fx_node.name}_owner"
                )
            fx_node.target, fx_node.args = setattr, (owner, name, value)
