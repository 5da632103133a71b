"""Logits that routers do not decide: they are fixed at 0, or follow the logit of another edge.

An anchored gate gives static edges weight 1 and all others weight 0 where the logit is 0. An edge
fixed at 0 therefore is as in the backbone. Its row of the router gets no gradient and stays at its
initial value of zero. An edge that follows another one uses that edge's row. `release_` copies the
row into its own, so an archive does not need to store any of this.

Shape suffixes: B images, E edges that one router decides.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from dggraph.compiler.lowered import routing_of
from dggraph.errors import InputError
from dggraph.graph.ir import CandidateEdge
from dggraph.network.gate_contexts import decided_edges
from dggraph.network.network import DynamicNetwork
from dggraph.ops.gating import AnchoredGate, SoftmaxGate
from dggraph.ops.routing import LinearRouter

HELD = -1


def pin_open_(net: DynamicNetwork, blocks: Collection[str]) -> None:
    """Fix the static edges into and out of `blocks` at weight 1 for every image. In place.

    This holds in training too. If x + F(x) was lifted, v0 feeds every block, so a pinned block
    always runs. In a chain it runs if the block before it runs, or if an edge past that block is
    open.

    Args:
        net: A converted network whose routers are untrained for these edges.
        blocks: Names of nodes of kind `block`.

    Raises:
        InputError: A name is not a block; or a router or gate is not one of dggraph's; or a router
            is already trained, so its logits are not 0.
    """
    pinned = _known(net, blocks)

    def follow(place: int, edge: CandidateEdge) -> int:
        return HELD if edge.is_static and {edge.source, edge.target} & pinned else place

    for stage in net.graph.stages:
        _hold(net, stage, lambda edges: [follow(place, edge) for place, edge in enumerate(edges)])


def decide_blocks_(net: DynamicNetwork, pinned: Collection[str] = ()) -> None:
    """Let routers decide about blocks: all edges out of one open and close together. In place.

    All other edges are as in the backbone. A lifted block adds its branch with one weight, x + w
    F(x), or is skipped if w is at or below the threshold. Blocks that contain their own x + F(x),
    or have no skip, always run.

    Args:
        net: A converted network with untrained `stage` routers. A router that reads the output of
            a block would decide too late to skip the block.
        pinned: Names of blocks that always run.

    Raises:
        InputError: The routers decide node by node, or no block is left to decide about, or as for
            `pin_open_`.
    """
    known = _known(net, pinned)
    of_nodes = [plan.name for plan in net.plan if plan.scope != "stage"]
    if of_nodes:
        raise InputError(
            "a node's router decides after its block has run, too late to skip the block, as in"
            f' stage {of_nodes[0]!r}. Convert with router="stage".'
        )
    if any(isinstance(module, SoftmaxGate) for module in net.lowered.modules()):
        raise InputError(
            "edges out of a block have one weight here, and the gate softmax weighs each against"
            ' the others into its target. Convert with gate="anchored".'
        )
    free = {
        node.name
        for stage, facts in net.graph.stages.items()
        for node in net.graph.nodes(stage)[1:-1]
        if facts.residual == "lift" and node.name not in known
    }
    if not free:
        raise InputError(
            "no block is left to decide about: all are pinned, or contain their own skip. Pin fewer"
            ' blocks, or convert with residual="lift".'
        )

    def follow(edges: list[CandidateEdge]) -> list[int]:
        sources = [edge.source for edge in edges]
        return [sources.index(source) if source in free else HELD for source in sources]

    for stage in net.graph.stages:
        _hold(net, stage, follow)


def release_(net: DynamicNetwork) -> None:
    """Write the constraints into the routers' own weights. In place.

    The outputs of the routers stay bitwise identical.
    """
    for router in net.lowered.modules():
        follows_E = getattr(router, "follows_E", None)
        if isinstance(router, LinearRouter) and isinstance(follows_E, Tensor):
            with torch.no_grad():
                for parameter in (router.weight, router.bias):
                    parameter.copy_(parameter[follows_E])
                    parameter[follows_E == HELD] = 0
            router.follows_E = torch.arange(len(follows_E), device=follows_E.device)


def _known(net: DynamicNetwork, blocks: Collection[str]) -> set[str]:
    """Return `blocks` as a set; raise InputError if one of them is not a block of `net`."""
    found = {node.name for stage in net.graph.stages for node in net.graph.nodes(stage)[1:-1]}
    unknown = sorted(set(blocks) - found)
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is not a block of this network, which routes"
            f" {', '.join(sorted(found))}."
        )
    return set(blocks)


def _hold(
    net: DynamicNetwork, stage: str, follow: Callable[[list[CandidateEdge]], list[int]]
) -> None:
    """Constrain each router of `stage`. In place.

    For the edges of one router, `follow` returns the index of the edge whose logit each takes, or
    HELD.
    """
    edges, routing = net.graph.edges(stage), routing_of(net.lowered, stage)
    for index, places in decided_edges(net, stage).items():
        follows = follow([edges[place] for place in places])
        if follows == list(range(len(places))):
            continue
        router, gate = routing.router(index), routing.gate(index)
        if not isinstance(router, LinearRouter) or not isinstance(gate, AnchoredGate):
            raise InputError(
                f"stage {stage!r} has a {type(router).__name__} and a {type(gate).__name__}. Edges"
                " are pinned by logits of 0, which needs a node or stage router and the gate"
                ' "anchored". Convert with those, or pin nothing.'
            )
        before = getattr(router, "follows_E", None)
        if isinstance(before, Tensor):  # what an earlier call fixed stays so
            follows = [
                was if was == HELD or now == own else now
                for own, (was, now) in enumerate(zip(before.tolist(), follows, strict=True))
            ]
        is_held_E = torch.tensor(
            [place != own for own, place in enumerate(follows)], device=router.bias.device
        )
        if router.weight[is_held_E].any() or router.bias[is_held_E].any():
            raise InputError(
                f"a router of stage {stage!r} is already trained. Pin edges before training."
            )
        router.register_buffer(
            "follows_E", torch.tensor(follows, device=router.bias.device), persistent=False
        )
        if before is None:
            router.register_forward_hook(_followed)


def _followed(router: Any, _inputs: Any, logits_BE: Tensor) -> Tensor:
    return torch.where(router.follows_E == HELD, 0.0, logits_BE[:, router.follows_E])
