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
        net.executor, net.plan = (
            "sparse",
            tuple(replace(stage, dense_only="it reads a number") for stage in net.plan),
        )
        output, found = net(X, return_gates=True)
    torch.testing.assert_close(
        output, expected, rtol=1e-6, atol=1e-7
    )  # vectorised sums depend on where in memory they start
    for stage, weights in gates.weights.items():
        torch.testing.assert_close(found.weights[stage], weights, rtol=1e-6, atol=1e-7)
        assert (
            found.raw[stage].shape == weights.shape
        )  # raw weights of edges that leave a dead node mean nothing
        opened = weights != 0
        torch.testing.assert_close(
            found.raw[stage][opened], gates.raw[stage][opened], rtol=1e-6, atol=1e-7
        )
