"""What paths cost, over a set: equal to recordings, however the set is cut into batches."""

import pytest
import torch
from reference import randomise_routers
from routed import convert, images

import dggraph
from dggraph.errors import GateError, InputError
from dggraph.network.cost import measure_macs


@pytest.mark.parametrize("router", ["node", "stage"])
def test_a_set_is_its_recordings(router: str) -> None:
    _, net = convert("lifted", router)
    randomise_routers(net, 1, 0.5).train()
    x = images(40, 0)
    summary = measure_macs(net, [(x[:7], None), (x[7:30], None), (x[30:], None)])
    assert net.training
    recording = dggraph.record(net, x, batch_size=40)
    kept = recording.macs.double() / net.macs_table.static
    assert summary.num_instances == 40
    assert summary.mean == pytest.approx(float(recording.macs.double().mean()), rel=1e-12)
    assert summary.kept == pytest.approx(float(kept.mean()), rel=1e-12)
    assert list(summary.percentiles) == [5, 25, 50, 75, 95]
    assert summary.percentiles[75] == pytest.approx(float(torch.quantile(kept, 0.75)), rel=1e-12)
    patterns = {
        tuple(w != 0 for weights in path.weights.values() for w in weights)
        for path in recording.paths
    }
    assert summary.num_paths == len(patterns) > 3


@pytest.mark.parametrize("router", ["node", "stage"])
def test_expected_macs_are_those_of_the_budget_by_either_executor(router: str) -> None:
    """What a dead node's router would have said differs between executors; nothing may depend on
    it.
    """
    _, net = convert("kept", router)
    randomise_routers(net, 1, 0.5)
    x = images(30, 0)
    summaries = []
    for executor in ("sparse", "dense"):
        net.executor = executor
        summaries.append(measure_macs(net, [x]))
    assert summaries[0].expected == pytest.approx(summaries[1].expected, rel=1e-12)
    assert summaries[0].expected != summaries[0].mean
    assert summaries[0].percentiles == summaries[1].percentiles
    assert any(
        net.graph.nodes("body")[i].name not in p.live_nodes(net.graph)
        for p in dggraph.record(net, x).paths
        for i in (1, 2, 3)
    )


def test_what_cannot_be_measured() -> None:
    _, net = convert("kept", "node")
    with pytest.raises(InputError, match="no images"):
        measure_macs(net, [])
    with pytest.raises(InputError, match="a batch is str"):
        measure_macs(net, ["image.png"])
    with torch.no_grad():
        net.lowered.dg_body.router_0.bias[1] = torch.nan
    net.executor = "dense"
    with pytest.raises(GateError, match="body_in -> body_1 is NaN for instance 0"):
        measure_macs(net.train(), [images(2, 0)])
    assert net.training
