"""The edge weights of one forward pass, and those of the backbone."""

from typing import NamedTuple

import torch
from torch import Tensor

from dggraph.graph.ir import DynamicGraph
from dggraph.ops.macs import MacsTable, open_probabilities, path_macs


class Gates(NamedTuple):
    """The edge weights of one forward pass, per stage, shape (B, E) in the order of
    `DynamicGraph.edges`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> _, gates = net(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> gates.adjacency("layer1").shape, gates.macs().shape
        (torch.Size([2, 5, 5]), torch.Size([2]))
    """

    weights: dict[str, Tensor]
    """What aggregation used; 0 where an edge is inactive. Carries the gradient."""
    raw: dict[str, Tensor]
    """Before the threshold and liveness; what it says of edges that leave a dead node means
    nothing.
    """
    thresholds: dict[str, Tensor]
    """Per stage, 0-d."""
    table: MacsTable
    """What the network's parts cost, for a budget."""

    def macs(self) -> Tensor:
        """(B,) float64: multiply-accumulates of each instance's path, routers and aggregation
        included.
        """
        return path_macs(self.open, self.table)

    def expected_macs(self) -> Tensor:
        """(B,) float64: what `losses.kept` follows, each edge open with the probability that
        `ops/macs` gives it. Carries the gradient.
        """
        chances = open_probabilities(self.weights, self.raw, self.thresholds, self.table)
        return path_macs(chances, self.table)

    @property
    def open(self) -> dict[str, Tensor]:
        """Per stage (B, E) bool: which edges are active."""
        return {stage: weights_BE.detach() != 0 for stage, weights_BE in self.weights.items()}

    def adjacency(self, stage: str) -> Tensor:
        """(B, V, V) weights of one stage: row = source, column = target, 0 where an edge is
        inactive. Carries the gradient.
        """
        weights_BE, topology = self.weights[stage], self.table.stages[stage].topology
        adjacency_BVV = weights_BE.new_zeros(
            (len(weights_BE), topology.num_vertices, topology.num_vertices)
        )
        adjacency_BVV[:, topology.sources, topology.targets] = weights_BE
        return adjacency_BVV


def static_weights(graph: DynamicGraph) -> dict[str, Tensor]:
    """Per stage (E,): 1 for the edges the backbone had, else 0."""
    return {
        stage: torch.tensor([float(edge.is_static) for edge in graph.edges(stage)], device="cpu")
        for stage in graph.stages
    }
