"""Blocks that every instance keeps: their routers' decisions are taken away from them.

An anchored gate gives static edges weight 1 where its router says 0. So a pinned edge's logit is held at 0: nothing flows back to its row of
the router, which stays at the zero it started with, and an archive needs to know nothing of it.

Shape suffixes: B instances, E edges that one router decides.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.ops.gating import AnchoredGate
from dggraph.ops.routing import LinearRouter
from dggraph.runtime.network import DynamicNetwork, decided_edges


def pin_open_(net: DynamicNetwork, blocks: Collection[str]) -> None:
    """Hold the static edges into and out of `blocks` at weight 1, for every instance, in training too. In place.

    Where x + F(x) was lifted, v0 feeds every block, so a pinned one always runs. In a chain it runs wherever the block before it does, or an
    edge past that one is open.

    Args:
        net: a converted network whose routers have not decided about these edges yet.
        blocks: names of nodes of kind `block`.

    Raises:
        InputError: a name is no block; or routers or gates are not ours, or were trained already, so that logits are not 0.
    """
    found = {node.name for stage in net.graph.stages for node in net.graph.nodes(stage)[1:-1]}
    unknown = sorted(set(blocks) - found)
    if unknown:
        raise InputError(f"{unknown[0]!r} is no block of this network, which routes {', '.join(sorted(found))}.")
    for stage in net.graph.stages:
        edges, owner = net.graph.edges(stage), net.lowered.get_submodule(f"dg_{stage}")
        for index, places in decided_edges(net, stage).items():
            is_pinned = [
                edges[place].is_static and bool({edges[place].source, edges[place].target} & set(blocks)) for place in places
            ]
            if any(is_pinned):
                _hold(stage, owner.get_submodule(f"router_{index}"), owner.get_submodule(f"gate_{index}"), torch.tensor(is_pinned))


def _hold(stage: str, router: nn.Module, gate: nn.Module, is_pinned_E: Tensor) -> None:
    if not isinstance(router, LinearRouter) or not isinstance(gate, AnchoredGate):
        raise InputError(
            f"stage {stage!r} has a {type(router).__name__} and a {type(gate).__name__}; blocks are pinned by logits of 0, which our routers "
            'and the gate "anchored" keep. Convert with those, or pin nothing.'
        )
    if router.weight[is_pinned_E].any() or router.bias[is_pinned_E].any():
        raise InputError(f"a router of stage {stage!r} was trained already: pin blocks before training.")
    router.register_buffer("is_free_E", ~is_pinned_E.to(router.bias.device), persistent=False)
    router.register_forward_hook(_without_pinned)


def _without_pinned(router: Any, _inputs: Any, logits_BE: Tensor) -> Tensor:
    return torch.where(router.is_free_E, logits_BE, 0.0)
