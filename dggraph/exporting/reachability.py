"""Which vertices and edges count for one image, as products of small matrices.

It is what `ops/liveness` computes vertex by vertex: exporters would write each step of its loops as
some ten operators, which took a tenth of the time of MobileNetV2. One product follows all paths at
once.

Shape suffixes: E edges, V vertices of a stage, B = 1.
"""

import torch
from torch import Tensor

from dggraph.ops.liveness import Topology


def settle_one(raw_BE: Tensor, topology: Topology, threshold: Tensor, training: bool) -> Tensor:
    """Compute `liveness.settle` for one image, in eval mode.

    Args:
        raw_BE: (1, E), bounded weights of all edges of a stage.
        topology: The stage's edges.
        threshold: 0-d, not negative.
        training: Not used; `settle` has it.
    """
    last, size = topology.incoming(topology.num_vertices - 1), topology.num_vertices
    open_BE = ~(raw_BE <= threshold)
    live_V = reachable(open_BE, topology)[0] > 0
    live_BE = live_V[torch.tensor(topology.sources, device=raw_BE.device)][None]
    weights_BE = torch.where(open_BE & live_BE, raw_BE, 0.0)
    # The rule for `out`: the largest weight of a live source opens; the later node wins ties.
    live_last_BE = live_BE[:, last]
    score_BE = torch.where(live_last_BE, raw_BE[:, last], -torch.inf)
    place_E = torch.arange(1, last.stop - last.start + 1, device=raw_BE.device)
    best_BE = torch.where(score_BE == score_BE.amax(1, keepdim=True), place_E, 0)
    is_best_BE = (best_BE == best_BE.amax(1, keepdim=True)) & live_last_BE
    forced_BE = torch.where(is_best_BE & ~live_V[size - 1], 1.0, weights_BE[:, last])
    return torch.cat([weights_BE[:, : last.start], forced_BE], 1)


def which_are_needed(weights: Tensor, topology: Topology) -> Tensor:
    """Return which vertices lie on an open path from v0 to `out`, (V,).

    Args:
        weights: Of all edges, (1, E, ...), settled.
        topology: The stage's edges.
    """
    open_BE = (weights != 0).flatten(2).any(2) if weights.ndim > 2 else weights != 0
    reach_VV = reachable(open_BE, topology)
    return reach_VV[0] * reach_VV[:, -1] > 0


def reachable(open_BE: Tensor, topology: Topology) -> Tensor:
    """Return (V, V), more than 0 where open edges lead from the row's vertex to the column's."""
    size, device = topology.num_vertices, open_BE.device
    place_EV = torch.zeros(len(topology.sources), size * size, device=device)
    for edge, (source, target) in enumerate(zip(*topology, strict=True)):
        place_EV[edge, source * size + target] = 1
    reach_VV = (open_BE.to(place_EV) @ place_EV).view(size, size) + torch.eye(size, device=device)
    for _ in range((size - 2).bit_length()):  # each product doubles the length of paths
        reach_VV = (reach_VV @ reach_VV).clamp(max=1)
    return reach_VV
