"""Running statistics from live rows only, beside a hand computation, and everything else left as it
was.
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from kinds import converted
from small import Net
from torch import Tensor, nn

import dggraph
from dggraph.errors import GateError, InputError
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights

X = (
    torch.linspace(-2, 2, 4 * 3 * 16 * 16).sin().reshape(4, 3, 16, 16)
    + torch.arange(4.0)[:, None, None, None]
)


def closed_for(
    net: Any, vertex: int, instances: list[int], num_instances: int = 4
) -> dict[str, Tensor]:
    """Gates that keep every static edge open, except those into block `vertex` for `instances`."""
    ((stage, static_E),) = static_weights(net.graph).items()
    weights_BE = static_E.repeat(num_instances, 1)
    target = net.graph.nodes(stage)[vertex].name
    places = [place for place, edge in enumerate(net.graph.edges(stage)) if edge.target == target]
    for instance in instances:
        weights_BE[instance, places] = 0
    return {stage: weights_BE}


def features_of_block_2(net: Any, rows: list[int]) -> Tensor:
    """What the first norm of the second block sees for `rows`, every norm before it in train mode;
    written out by hand.
    """
    backbone = copy.deepcopy(net.lowered).train()
    x0 = backbone.stem(X)
    first = backbone.layers[0]
    branch = first.norm2(first.conv2(first.relu(first.norm1(first.conv1(x0)))))
    features: Tensor = backbone.layers[1].conv1((x0 + branch)[rows])
    return features.detach()


def statistics_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    return norm.get_buffer("running_mean").clone(), norm.get_buffer("running_var").clone()


def test_a_block_gets_the_statistics_of_those_that_reach_it() -> None:
    net = converted("lifted", "stage")
    wanted = features_of_block_2(net, [0, 1])
    with pinned_gates(net, closed_for(net, 2, [2, 3])):
        found = dggraph.recalibrate_norms_(net, [X])
    mean, variance = statistics_of(net.lowered.layers[1].norm1)
    assert torch.allclose(mean, wanted.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(variance, wanted.transpose(0, 1).flatten(1).var(1), rtol=1e-4)
    assert len(found.updated) == 7
    assert not found.kept
    assert not found.mixed
    assert net.lowered.layers[1].norm1.num_batches_tracked == 1


def test_every_batch_counts_live_rows_alone() -> None:
    """The second batch runs as the first: a norm left in train mode would make it run dense."""
    net = converted("lifted", "stage")
    wanted = features_of_block_2(net, [0, 1]).repeat(2, 1, 1, 1)
    with pinned_gates(net, closed_for(net, 2, [2, 3])):
        dggraph.recalibrate_norms_(net, [X, X])
    mean, variance = statistics_of(net.lowered.layers[1].norm1)
    assert torch.allclose(mean, wanted.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert torch.allclose(variance, wanted.transpose(0, 1).flatten(1).var(1), rtol=1e-4)


def test_dense_masked_training_lets_zeros_in() -> None:
    """Why this exists: with half the rows dead, variance v and mean m become v / 2 + m^2 / 4 and m
    / 2.
    """
    net = converted("lifted", "stage")
    live = features_of_block_2(net, [0, 1])
    with pinned_gates(net, closed_for(net, 2, [2, 3])):
        torch.optim.swa_utils.update_bn([X], net)
    mean, variance = statistics_of(net.lowered.layers[1].norm1)
    count = live[:, 0].numel()
    v, m = live.transpose(0, 1).flatten(1).var(1, correction=0), live.mean((0, 2, 3))
    assert torch.allclose(mean, m / 2, rtol=1e-4, atol=1e-5)
    assert torch.allclose(
        variance, (v / 2 + m.square() / 4) * (2 * count / (2 * count - 1)), rtol=1e-3
    )


def test_batches_merge_exactly() -> None:
    """The stem's norm has no norm before it, so its statistics are those of all images, however
    they are batched.
    """
    one, other = converted("kept"), converted("kept")
    dggraph.recalibrate_norms_(one, [X])
    dggraph.recalibrate_norms_(other, [(X[:1], "label"), [X[1:]]])
    for a, b in zip(
        statistics_of(one.lowered.stem[1]), statistics_of(other.lowered.stem[1]), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-5)
    assert other.lowered.stem[1].num_batches_tracked == 2


def test_no_live_row_keeps_the_old_statistics() -> None:
    net = converted("lifted", "stage")
    before = statistics_of(net.lowered.layers[1].norm1)
    with pinned_gates(net, closed_for(net, 2, [0, 1, 2, 3])):
        found = dggraph.recalibrate_norms_(net, [X])
    assert found.kept == ("layers.1.norm1", "layers.1.norm2")
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, statistics_of(net.lowered.layers[1].norm1), strict=True)
    )


def test_one_value_a_channel_keeps_the_old_statistics() -> None:
    """One live row of 1x1 has no variance: torch refuses it, `recalibrate_norms_` passes it through
    with the old statistics.
    """
    net = converted("lifted", "stage")
    before = statistics_of(net.lowered.layers[1].norm1)
    with pinned_gates(net, closed_for(net, 2, [1, 2, 3])):
        found = dggraph.recalibrate_norms_(net, [X[:, :, :2, :2]])
    assert found.kept == ("layers.1.norm1", "layers.1.norm2")
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, statistics_of(net.lowered.layers[1].norm1), strict=True)
    )
    assert all(buffer.isfinite().all() for buffer in net.buffers())


def test_everything_else_is_left_as_it_was() -> None:
    net = converted("kept").train()
    net.executor = "dense"
    net.lowered.stem[1].eval()
    net.lowered.layers[0].norm1.momentum = None
    net.compile(backend="eager")
    modes = [module.training for module in net.modules()]
    parameters = [parameter.clone() for parameter in net.parameters()]
    twin = copy.deepcopy(net)
    for one in (net, twin):
        dggraph.recalibrate_norms_(one, [X])
    assert [module.training for module in net.modules()] == modes
    assert net.executor == "dense"
    assert net.lowered.layers[0].norm1.momentum is None
    assert net.lowered.layers[0].norm2.momentum == 0.1
    assert not net.lowered.stem[1]._forward_pre_hooks
    assert all(torch.equal(a, b) for a, b in zip(parameters, net.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


def test_a_stage_that_only_runs_whole_is_reported() -> None:
    net = converted("kept")
    net.plan = tuple(replace(stage, dense_only="for this test") for stage in net.plan)
    net._inliner = None
    found = dggraph.recalibrate_norms_(net, [X])
    assert found.updated == ("stem.1",)
    assert found.mixed == tuple(
        f"layers.{block}.norm{norm}" for block in range(3) for norm in (1, 2)
    )


class Auxiliary(Net):
    """Its second head runs in training only, as those of GoogLeNet and Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Any:
        features = self.features(x)
        logits = self.head(features)
        return (logits, self.auxiliary(features)) if self.training else logits


def test_norms_that_only_training_calls_keep_their_statistics() -> None:
    net = dggraph.convert(Auxiliary(), X)
    before = statistics_of(net.auxiliary[1])
    found = dggraph.recalibrate_norms_(net, [X])
    assert found.kept == ("auxiliary.1",)
    assert found.updated == tuple(f"blocks.{index}.norm" for index in range(3))
    assert all(map(torch.equal, statistics_of(net.auxiliary[1]), before))
    assert net.auxiliary[1].momentum == 0.1
    assert net.executor == "auto"


def test_errors_leave_the_statistics_alone() -> None:
    net = converted("kept")
    before = [buffer.clone() for buffer in net.buffers()]
    with pytest.raises(InputError, match="no batches"):
        dggraph.recalibrate_norms_(net, iter(()))
    with pytest.raises(InputError, match=r"norm 'stem\.1' saw values that are not finite"):
        dggraph.recalibrate_norms_(net, [X, X.log()])
    net.lowered.dg_layers.router_0.bias.data[0] = torch.nan
    with pytest.raises(GateError, match="is NaN"):
        dggraph.recalibrate_norms_(net, [X])
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))
    assert not net.training
