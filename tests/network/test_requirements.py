"""Functions on converted networks name what they were given instead."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import Net, X
from torch import nn

import dggraph
from dggraph.errors import InputError

pytestmark = pytest.mark.cpu

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "record": lambda net: dggraph.record(net, X),
    "measure_macs": lambda net: dggraph.measure_macs(net, [X]),
    "explain": lambda net: dggraph.explain(net, X[0]),
    "check_gates": lambda net: dggraph.check_gates(net, [X]),
    "optimize_for_inference": dggraph.optimize_for_inference,
    "recalibrate_norms_": lambda net: dggraph.recalibrate_norms_(net, [X]),
    "calibrate": lambda net: dggraph.calibrate(net, [X]),
    "static": lambda net: dggraph.static(net, images=X),
    "thin": lambda net: dggraph.thin(net, [(X[0], 0)], budget=0.9),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_was_not_converted_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} takes .* not Net. Call dggraph.convert first"):
        FUNCTIONS[name](Net())
    wrapped = nn.DataParallel(dggraph.convert(Net(), X))
    with pytest.raises(InputError, match=rf"{name} takes .* not DataParallel\. .*net\.module"):
        FUNCTIONS[name](wrapped)
    baseline = dggraph.baselines.squeeze_excitation(Net(), X, reduction=2)
    with pytest.raises(InputError, match=f"{name} takes .* dggraph.baselines has no graph"):
        FUNCTIONS[name](baseline)


def test_a_compiled_network_stands_for_itself() -> None:
    net = dggraph.convert(Net(), X).eval()
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(dggraph.record(compiled, X).output, dggraph.record(net, X).output)
