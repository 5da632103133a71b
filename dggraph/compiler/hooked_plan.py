"""Choose the stages that run dense because hooks in them see whole batches."""

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from dggraph.compiler.contexts import called_module
from dggraph.compiler.hooked_calls import enter, entered, leave
from dggraph.compiler.hooks import has_hooks
from dggraph.compiler.planning import StagePlan


def hooked_blocks(graph_module: fx.GraphModule, plan: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """Return `plan` with every stage that contains `enter` or `leave` set to run whole batches."""
    ends = [
        fx_node for fx_node in graph_module.graph.nodes if fx_node.target in (enter, entered, leave)
    ]
    touched = {user.name for end in ends for user in end.users} | {
        read.name for end in ends for read in end.all_input_nodes
    }
    return tuple(
        _on_whole_batches(stage) if not _inside(stage).isdisjoint(touched) else stage
        for stage in plan
    )


def hooked_layers(graph_module: fx.GraphModule, plan: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """Return `plan` with every stage whose blocks call a hooked layer set to run whole batches."""
    hooked = {
        fx_node.name
        for fx_node in graph_module.graph.nodes
        if (path := called_module(fx_node)) is not None
        and any(map(has_hooks, graph_module.get_submodule(path).modules()))
    }
    return tuple(
        _on_whole_batches(stage) if not _inside(stage).isdisjoint(hooked) else stage
        for stage in plan
    )


def _inside(stage: StagePlan) -> set[str]:
    """Return the names of the fx nodes that the sparse executor runs inside `stage`.

    The output is not among them: it is read outside.
    """
    return {*stage.own, *(name for block in stage.blocks for name in block.fx_nodes)} - {
        stage.output
    }


def _on_whole_batches(stage: StagePlan) -> StagePlan:
    """Return `stage` set to run dense, so that hooks see every sample in its place."""
    return replace(
        stage, dense_only=stage.dense_only or "a module in it has hooks, which see whole batches"
    )
