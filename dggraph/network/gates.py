"""The edge weights of one forward pass, and those of the backbone."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from dggraph.graph.ir import DynamicGraph
from dggraph.ops.granularity import mean_of_parts
from dggraph.ops.macs import MacsTable, open_probabilities, path_macs


class Gates(NamedTuple):
    """The edge weights of one forward pass.

    Each stage has a tensor (B, E), in the order of `DynamicGraph.edges`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> _, gates = net(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> gates.adjacency("layer1").shape, gates.macs().shape
        (torch.Size([2, 5, 5]), torch.Size([2]))
    """

    weights: dict[str, Tensor]
    """The weights that aggregation used; 0 if an edge is inactive. They carry the gradient."""
    raw: dict[str, Tensor]
    """The weights before the threshold and liveness.

    Entries of edges that leave a dead node have no meaning.
    """
    thresholds: dict[str, Tensor]
    """One 0-d tensor per stage."""
    table: MacsTable
    """The cost of the network's parts, for a budget."""
    parts: Mapping[str, Tensor] = MappingProxyType({})
    """Where edges have several weights: all that aggregation used, (B, E, ...) per stage.

    `weights` and `raw` then are the largest of each edge.
    """

    def macs(self) -> Tensor:
        """Return the MACs of each image's path, (B,) float64, with routers and aggregation."""
        return path_macs(self.open, self.table)

    def expected_macs(self) -> Tensor:
        """Return the expected MACs of each image, (B,) float64. They carry the gradient.

        `losses.kept` uses them. Every edge is open with the probability that `ops/macs` gives it.
        """
        chances = open_probabilities(self.weights, self.raw, self.thresholds, self.table)
        return path_macs(chances, self.table)

    @property
    def open(self) -> dict[str, Tensor]:
        """Whether each edge is active: per stage (B, E) bool."""
        return {stage: weights_BE.detach() != 0 for stage, weights_BE in self.weights.items()}

    def mean_weights(self, stage: str) -> Tensor:
        """Return the weight of each edge of one stage, (B, E), 0 if inactive; the mean of several.

        The result carries the gradient.
        """
        parts_BEP = self.parts.get(stage)
        return self.weights[stage] if parts_BEP is None else mean_of_parts(parts_BEP)

    def all_weights(self, stage: str) -> Tensor:
        """Return every weight of each edge of one stage: (B, E), or (B, E, ...) with several."""
        return self.parts.get(stage, self.weights[stage])

    def adjacency(self, stage: str) -> Tensor:
        """Return the adjacency matrices of one stage, (B, V, V): row = source, column = target.

        Entries are edge weights, 0 for inactive edges, and the mean where an edge has several. The
        result carries the gradient.
        """
        weights_BE, topology = self.mean_weights(stage), self.table.stages[stage].topology
        adjacency_BVV = weights_BE.new_zeros(
            (len(weights_BE), topology.num_vertices, topology.num_vertices)
        )
        adjacency_BVV[:, topology.sources, topology.targets] = weights_BE
        return adjacency_BVV


def static_weights(graph: DynamicGraph) -> dict[str, Tensor]:
    """Return (E,) per stage: 1 for the edges of the backbone, else 0."""
    return {
        stage: torch.tensor([float(edge.is_static) for edge in graph.edges(stage)], device="cpu")
        for stage in graph.stages
    }
