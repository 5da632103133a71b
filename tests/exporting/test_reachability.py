"""Products of matrices give what `ops/liveness` gives vertex by vertex."""

import pytest
import torch

from dggraph.exporting.reachability import settle_one, which_are_needed
from dggraph.ops.liveness import Topology, leads_to_out, live_vertices, settle


def topology(num_vertices: int, reach: int) -> Topology:
    """Edges over at most `reach` vertices, by target and then by source."""
    pairs = [
        (source, target)
        for target in range(1, num_vertices)
        for source in range(max(0, target - reach), target)
    ]
    sources, targets = zip(*pairs, strict=True)
    return Topology(sources, targets)


@pytest.mark.parametrize(("num_vertices", "reach"), [(3, 9), (5, 9), (5, 2), (6, 1), (38, 37)])
@pytest.mark.parametrize("share", [0.15, 0.5])
def test_edges_and_vertices_are_those_of_liveness(
    num_vertices: int, reach: int, share: float
) -> None:
    edges, threshold = topology(num_vertices, reach), torch.tensor(0.5)
    for _ in range(60):
        # few values, so that weights tie and lie at the threshold
        raw_BE = torch.randint(0, 4, (1, len(edges.sources))) / 4 - 0.25
        raw_BE = raw_BE + (torch.rand(raw_BE.shape) < share) * 0.5
        wanted_BE = settle(raw_BE, edges, threshold, False)
        found_BE = settle_one(raw_BE, edges, threshold, False)
        assert torch.equal(found_BE, wanted_BE)
        open_BE = wanted_BE != 0
        needed_V = (live_vertices(open_BE, edges) & leads_to_out(open_BE, edges))[0]
        if open_BE[0, edges.incoming(num_vertices - 1)].any():
            assert torch.equal(which_are_needed(wanted_BE, edges), needed_V)
            parts = wanted_BE[:, :, None, None] * torch.ones(1, 1, 2, 3)
            assert torch.equal(which_are_needed(parts, edges), needed_V)


def test_a_weight_that_is_no_number_stays_visible() -> None:
    raw_BE = torch.tensor([[torch.nan, 0.0, 1.0]])
    found_BE = settle_one(raw_BE, topology(3, 2), torch.tensor(0.5), False)
    assert found_BE.isnan().tolist() == [[True, False, False]]
