"""A second form of a network with one gate per block: dggraph's own graph, which skips blocks.

It shares every module with the masked form. Of the edges out of a node, the one to the next open
block is open; from there the next node decides. A block without a gate always runs.

Shape suffixes: B images, L gated blocks, E edges out of one node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dggraph.baselines.draft import Draft
from dggraph.compiler.fingerprints import fingerprint
from dggraph.compiler.lowered import OWNED, ROUTING, routing_of
from dggraph.compiler.static_graph import build_graph, choose_residuals, find_adds
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.graph.wiring import wire
from dggraph.network.assembly import assemble
from dggraph.network.blueprint import Blueprint
from dggraph.network.network import DynamicNetwork
from dggraph.network.skipping_checks import check_skipping_

OPEN = 0.5
"""Gates are 0 or 1; edges above this threshold are open."""


class BlockGate(nn.Module):
    """A module from a block's input (B, ...) to 1 where it runs and 0 where not, (B, 1)."""

    @property
    def macs(self) -> int:
        """Its multiply-accumulates for one image."""
        raise NotImplementedError


class NextOpen(nn.Module):
    """The router of one node: 1 for the edge to the next open block, or to the stage's output.

    Args:
        gates: One for each later block of the stage, None for a block that always runs.
    """

    def __init__(self, gates: Sequence[nn.Module | None]) -> None:
        super().__init__()
        self.num_later = len(gates)
        self.gates = nn.ModuleDict(
            {str(place): gate for place, gate in enumerate(gates) if gate is not None}
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to the weights (B, E) of the edges out of this node."""
        left_B1 = torch.ones((len(features), 1), device=features.device)
        row = []
        for place in range(self.num_later):
            gate_B1 = torch.ones_like(left_B1)
            if str(place) in self.gates:
                gate_B1 = self.gates[str(place)](features).float()
            row.append(left_B1 * gate_B1)
            left_B1 = left_B1 * (1 - gate_B1)
        return torch.cat([*row, left_B1], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippingTwin:
    """The skipping form of a network, and where its gates are."""

    net: DynamicNetwork
    stages: tuple[tuple[tuple[str, ...], ...], ...]
    """For each stage and block, the names of the block's fx nodes."""
    gate_macs: tuple[tuple[int | None, ...], ...]
    """For each stage and block, the multiply-accumulates of its gate; None without a gate."""

    def run(self, lowered: nn.Module, x: Tensor) -> tuple[object, Tensor]:
        """Return the output for x (B, C, H, W) and the gates (B, L), without gradients.

        Args:
            lowered: The masked form, whose modules are used.
            x: Images.
        """
        for kind in OWNED[:3]:  # what was assigned to the masked form since
            own = vars(self.net.lowered)[kind]
            own.update({key: one for key, one in vars(lowered)[kind].items() if not _is_added(key)})
        output, gates = self.net.eval()(x, return_gates=True)
        columns = []
        for stage, costs in zip(self.net.graph.stages, self.gate_macs, strict=True):
            topology = gates.table.stages[stage].topology
            for vertex, cost in enumerate(costs, start=1):
                if cost is not None:
                    is_open = gates.weights[stage][:, topology.incoming(vertex)] != 0
                    columns.append(is_open.any(1))
        return output, torch.stack(columns, 1).to(x.dtype)

    def saved(self, gates_BL: Tensor, macs: Mapping[str, int]) -> Tensor:
        """Return how many multiply-accumulates skipping saves each image, (B,) float64.

        A node that runs asks the gates of all later blocks in its stage; the masked form asks each
        gate once.

        Args:
            gates_BL: The gates of all gated blocks.
            macs: The cost of each fx node of the masked form.
        """
        columns = iter(gates_BL.double().T)
        saved_B = gates_BL.new_zeros(len(gates_BL), dtype=torch.float64)
        for blocks, costs in zip(self.stages, self.gate_macs, strict=True):
            live_B = torch.ones_like(saved_B)
            for place, (names, cost) in enumerate(zip(blocks, costs, strict=True)):
                later = sum(one for one in costs[place:] if one is not None)
                saved_B = saved_B + (cost or 0) - live_B * later
                live_B = torch.ones_like(saved_B)
                if cost is not None:
                    live_B = next(columns)
                    saved_B = saved_B + (1 - live_B) * sum(macs.get(name, 0) for name in names)
        return saved_B


def build_twin(draft: Draft, gates: Mapping[str, BlockGate]) -> SkippingTwin:
    """Lower the backbone of `draft` again, with routers made of `gates`.

    Args:
        draft: A finished draft, whose modules are shared.
        gates: The gates by the fx node whose value leaves their block.

    Raises:
        LoweringError: The stages cannot be run block by block.
    """
    flow, found = draft.flow, draft.found.stages
    with ordinary_surroundings(draft.example.device):
        adds = find_adds(flow, found)
        kept_because = choose_residuals(found, adds, choice="keep", is_complete=True)
        graph = wire(build_graph(type(draft.backbone).__name__, found, kept_because), "complete")
        blueprint = Blueprint(
            fingerprint=fingerprint(flow.trace.graph),
            found=found,
            static=draft.found.static,
            kept_because=kept_because,
            router="node",
            gate="anchored",
            leaves=(),
            input_shape=tuple(draft.example.shape[1:]),
            dtype=str(draft.example.dtype).removeprefix("torch."),
        )
        net = assemble(flow, adds, graph=graph, blueprint=blueprint, threshold=OPEN)
        check_skipping_(net, draft.example[:1].expand(2, -1, -1, -1).clone())
        net.forget_program()
    costs = []
    for name, stage in zip(graph.stages, found, strict=True):
        own = [gates.get(block.output) for block in stage.blocks]
        costs.append(tuple(None if gate is None else gate.macs for gate in own))
        if any(gate is not None for gate in own):
            routing = routing_of(net.lowered, name)
            for vertex in range(len(own)):
                routing.add_module(f"router_{vertex}", NextOpen(own[vertex:]))
                routing.add_module(f"gate_{vertex}", nn.Identity())
            if f"router_{len(own)}" in routing._modules:
                routing.add_module(f"router_{len(own)}", NextOpen(()))
                routing.add_module(f"gate_{len(own)}", nn.Identity())
    net.executor = "sparse"
    return SkippingTwin(
        net=net,
        stages=tuple(tuple(block.fx_nodes for block in stage.blocks) for stage in found),
        gate_macs=tuple(costs),
    )


def _is_added(key: str) -> bool:
    return key.startswith(ROUTING)
