"""Recomputed sums: the same gradients to the bit, fewer tensors kept."""

import copy
from typing import Any

import pytest
import torch
from random_nets import SIDE, Net
from reference import randomise, randomise_routers
from torch import Tensor, nn

import dggraph
from dggraph.errors import GradientError
from dggraph.ops import recompute
from dggraph.ops.aggregation import aggregate, share
from dggraph.ops.recompute import checkpoint_aggregation
from dggraph.ops.stage_cache import stage_cache
from dggraph.ops.weighted_sum import weighted_sum


@pytest.mark.parametrize("kind", ["kept", "lifted", "adapter"])
def test_gradients_are_the_same_to_the_bit(kind: str) -> None:
    net = dggraph.convert(randomise(Net(kind, 4)), torch.zeros(1, 3, SIDE, SIDE)).train()
    randomise_routers(net)
    x = torch.randn(3, 3, SIDE, SIDE)

    def gradients() -> list[Tensor]:
        net.zero_grad()
        net(x).square().sum().backward()
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    plain = gradients()
    with checkpoint_aggregation():
        recomputed = gradients()
    net.recompute = True
    as_asked = gradients()
    assert len(plain) == len(recomputed) == len(as_asked) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, as_asked, strict=True))


def test_a_network_computes_sums_again_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dggraph.convert(randomise(Net("kept", 4)), torch.zeros(1, 3, SIDE, SIDE)).train()
    calls: list[int] = []

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return weighted_sum(*args)

    monkeypatch.setattr(recompute, "weighted_sum", counted)
    x = torch.randn(3, 3, SIDE, SIDE)
    net(x).sum().backward()
    assert not calls
    net.recompute = True
    copied = copy.deepcopy(net)
    copied(x).sum().backward()
    num_sums = sum(len(net.graph.nodes(stage)) - 1 for stage in net.graph.stages)
    assert len(calls) == num_sums, "once per block, and once for the layer after the stage"


def saved_sizes(is_checkpointed: bool) -> list[int]:
    """Bytes of each storage that a convolution over a sum keeps for its backward pass."""
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    weights = torch.ones(2, 1, requires_grad=True)
    conv = nn.Conv2d(4, 4, 1, bias=False)
    cache, kept = stage_cache(), dict[int, int]()

    def run() -> None:
        total = aggregate([share(x, cache, 0)], weights, cache, (0,), 1)
        storage = total.untyped_storage()
        inputs = [
            t
            for t in [conv(total).grad_fn._saved_input]
            if t.untyped_storage().data_ptr() == storage.data_ptr()
        ]
        kept.update({number: one.untyped_storage().nbytes() for number, one in enumerate(inputs)})

    if is_checkpointed:
        with checkpoint_aggregation():
            run()
    else:
        run()
    return list(kept.values())


def test_the_sum_itself_is_not_kept() -> None:
    assert saved_sizes(False) == [2 * 4 * 8 * 8 * 4]
    assert saved_sizes(True) == []


def test_a_sum_that_its_block_overwrites_is_kept_as_it_is() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    weights = torch.full((2, 1), 2.0, requires_grad=True)
    cache = stage_cache()
    with checkpoint_aggregation():
        total = aggregate([share(x, cache, 0)], weights, cache, (0,), 1)
        total.relu_().square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 8 * x.detach().clamp(min=0))


def test_a_feature_overwritten_afterwards_is_an_error() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    y, weights, cache = x * 1, torch.ones(2, 1, requires_grad=True), stage_cache()
    with checkpoint_aggregation():
        total = aggregate([y.detach()], weights, cache, (None,), 1)
        loss = total.square().sum()
        y.detach().add_(1)
        with pytest.raises(GradientError, match="overwritten in place"):
            loss.backward()
