"""Stages that the caller names: order, overlaps, names, single modules, and reasons that are
true.
"""

from typing import Any

import pytest
import torch
from small import Net, TwoStages, X
from torch import Tensor, nn

import dggraph
from dggraph.errors import DiscoveryError
from dggraph.network.gate_contexts import pinned_gates


def weakened(net: Any, stage: str) -> Tensor:
    """The output where every edge into `out` of `stage` weighs 0.9."""
    out = net.graph.nodes(stage)[-1].name
    weights = torch.tensor(
        [0.9 if edge.target == out else float(edge.is_static) for edge in net.graph.edges(stage)]
    )
    with torch.no_grad(), pinned_gates(net, {stage: weights}):
        output: Tensor = net(X)
    return output


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")])
def test_stages_work_in_whatever_order_they_are_named(order: tuple[str, str]) -> None:
    """Naming the later stage first must not cut the earlier one off."""
    model = TwoStages().eval()
    net = dggraph.convert(
        model, X, residual="keep", stages={name: [f"{name}.0", f"{name}.1"] for name in order}
    )
    assert list(net.graph.stages) == ["first", "second"]
    assert torch.equal(net(X), model(X))
    for stage in order:
        assert not torch.equal(weakened(net, stage), model(X))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"a": ["first.0", "first.1"], "b": ["first.1", "second.0"]},
            r"'a' and 'b' share 'first\.1'",
        ),
        ({"a": ["first", "second"], "b": ["first.0", "first.1"]}, r"share 'first\.0'"),
        ({"a b": ["first.0", "first.1"]}, "'a b' is not an identifier"),
        ({"": ["first.0", "first.1"]}, "'' is not an identifier"),
        ({1: ["first.0", "first.1"]}, "1 is not an identifier"),
        ({"a": "first.0"}, "is not a list of module paths"),
        ({"a": [1, 2]}, "is not a list of module paths"),
        ([["first.0"]], "is not a mapping"),
        ({"a": ["head"]}, "no single input and output"),
    ],
)
def test_stages_that_cannot_be_had(stages: Any, message: str) -> None:
    with pytest.raises(DiscoveryError, match=message):
        dggraph.convert(TwoStages(), X, stages=stages)


def test_single_convolutions_can_be_blocks() -> None:
    net = dggraph.convert(Net(), X, stages={"convs": ["blocks.0.conv1", "blocks.0.norm"]})
    assert [node.module_path for node in net.graph.nodes("convs")] == [
        "stem",
        "blocks.0.conv1",
        "blocks.0.norm",
        "",
    ]


def test_reasons_do_not_blame_what_was_not_named() -> None:
    net = dggraph.convert(Net(), X, stages={"some": ["blocks.0", "blocks.1"]})
    reasons = {part.module_path: part.reason for part in net.report.static}
    assert reasons["blocks.2"] == "not named in `stages`"
    assert net.report.routed_fraction < net.report.covered_fraction + 1e-9


class Neck(Net):
    """A module whose name looks like one of the lowered network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.dg_neck = nn.Conv2d(8, 8, 1)

    def features(self, x: Tensor) -> Tensor:
        return self.dg_neck(super().features(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("residual", ["keep", "auto"])
def test_readers_are_known_by_identity_not_by_name(residual: Any) -> None:
    model = Neck().eval()
    net = dggraph.convert(model, X, residual=residual).eval()
    assert not torch.allclose(weakened(net, "blocks"), model(X), atol=1e-7)
    gates_of = net(X, return_gates=True)
    gates_of[0].sum().backward()
    assert all(parameter.grad is not None for parameter in net.lowered.dg_blocks.parameters())


class Early(TwoStages):
    """Returns what stands in front of its second stage, which runs all the same."""

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(self.stem(x))
        self.second(early)
        return early  # type: ignore[no-any-return]


class Written(TwoStages):
    """What its second stage gives is only written into a tensor that is returned."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(self.stem(x))
        filled = torch.zeros_like(features)
        filled.flatten(1).copy_(self.second(features).flatten(1))
        return filled


class Kept(Early):
    """What its second stage gives stays on the module."""

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(self.stem(x))
        self.late = self.second(early)
        return early  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "num_stages"), [(Early, 1), (Written, 2), (Kept, 2)])
def test_a_stage_that_nothing_reads_stays_static(kind: Any, num_stages: int) -> None:
    model = kind().eval()
    net = dggraph.convert(model, X)
    assert len(net.graph.stages) == num_stages
    unread = {p.module_path for p in net.report.static if p.reason == "nothing reads its output"}
    assert unread == ({"second.0"} if kind is Early else set())
    assert torch.equal(net(X), model(X))
    net(X).sum().backward()
    idle = {name for name, one in net.named_parameters() if one.grad is None}
    assert not any(name.startswith("dg_") for name in idle) or kind is Kept
