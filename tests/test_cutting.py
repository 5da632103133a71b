"""Cutting: stages that only run whole keep their gates, under every router."""

from dataclasses import replace

import pytest
import torch
from reference import randomise_routers
from small import Net, X

import dggraph


@pytest.mark.parametrize("router", ["node", "stage"])
def test_gates_of_a_stage_that_runs_whole(router: str) -> None:
    net = dggraph.convert(Net(), X, router=router).eval()
    randomise_routers(net)
    net.executor = "dense"
    with torch.no_grad():
        expected, gates = net(X, return_gates=True)
        net.executor, net.plan = "sparse", tuple(replace(stage, dense_only="it reads a number") for stage in net.plan)
        output, found = net(X, return_gates=True)
    assert torch.equal(output, expected)
    assert all(torch.equal(found.weights[stage], gates.weights[stage]) for stage in gates.weights)
    for stage, weights in gates.weights.items():  # raw weights of edges that leave a dead node mean nothing
        assert found.raw[stage].shape == weights.shape
        assert torch.equal(found.raw[stage][weights != 0], gates.raw[stage][weights != 0])
