"""Skipped layers: the sparse form is the masked one, skips work, and counts it; the loss and the
noise by hand.
"""

import copy
import math

import pytest
import torch
from small import Net
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dggraph.baselines import layer_skip
from dggraph.baselines.layer_gates import LayerSkipNetwork, straight_gates
from dggraph.errors import InputError

EXAMPLE = torch.zeros(1, 3, 32, 32)
X = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * torch.linspace(
    0.1, 3, 12
).reshape(-1, 1, 1, 1)


def deciding(model: str | nn.Module, seed: int = 0) -> LayerSkipNetwork:
    """With gates that differ between images."""
    torch.manual_seed(seed)
    net = layer_skip(model, EXAMPLE).double().eval()
    seen = {}
    for name, gate in net.dg_method.named_children():
        nn.init.normal_(gate.last.weight)
        nn.init.zeros_(gate.last.bias)
        gate.last.register_forward_hook(
            lambda module, inputs, logits, name=name: seen.setdefault(name, logits)
        )
    with torch.no_grad():
        for name, gate in net.dg_method.named_children():
            seen.clear()
            net(X.double())
            gate.last.bias -= seen[name].sort(0).values[5:7].mean()
    for gate in net.dg_method.children():
        gate.last._forward_hooks.clear()
    return net


def close(one: Tensor, other: Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-12 * float(other.abs().max())


@pytest.mark.parametrize("model", ["dggraph:resnet20_8", Net(depth=4)])
@torch.no_grad()
def test_skipping_is_masking(model: str | nn.Module) -> None:
    net, x = deciding(model), X.double()
    masked, values = net(x, return_values=True)
    net.executor = "sparse"
    sparse, also = net(x, return_values=True)
    assert close(sparse, masked)
    assert torch.equal(also["gates"], values["gates"])
    assert 0.2 < float(values["gates"].mean()) < 0.8
    assert len(values["gates"].unique(dim=0)) > 2
    assert values["gates"].shape == (12, len(net.report.changed))
    assert close(torch.cat([net(image[None]) for image in x]), masked)


@torch.no_grad()
def test_closed_blocks_do_not_run_and_the_count_is_torchs() -> None:
    net, x = deciding("dggraph:resnet20_8"), X.double()
    net.executor = "sparse"
    counted = []
    for image in x:
        net(image[None])  # the program is made in the first pass
        with FlopCounterMode(display=False) as counter:
            net(image[None])
        counted.append(counter.get_total_flops() / 2)
    assert net.macs(x).tolist() == counted
    assert len(set(counted)) > 2


@torch.no_grad()
def test_what_is_assigned_and_copied_runs_in_both_forms() -> None:
    net = deciding("dggraph:resnet20_8")
    net.fc = nn.Linear(32, 3).double()
    twin = copy.deepcopy(net)
    for one in (net, twin):
        one.executor = "masked"
        masked = one(X.double())
        one.executor = "sparse"
        assert masked.shape == (12, 3)
        assert close(one(X.double()), masked)
        for parameter in net.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(twin(X.double()), net(X.double()))


def test_training_and_gradients_use_the_masked_form() -> None:
    net = deciding("dggraph:resnet20_8")
    net.executor = "sparse"
    net(X.double()).sum().backward()
    own = [p for name, p in net.named_parameters() if not name.startswith("dg_")]
    assert all(parameter.grad is not None for parameter in own)
    net.executor = "skip"
    with pytest.raises(InputError, match="executor='skip' is not one of masked, sparse"):
        net(X.double())


def test_the_loss_is_the_distance_of_each_gate_from_the_rate() -> None:
    net = layer_skip("dggraph:resnet14_4", EXAMPLE, rate=0.5, weight=2.0)
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], requires_grad=True)
    loss = net.auxiliary_loss({"gates": gates})
    assert float(loss.detach()) == 2.0 * (0.5**2 + 0.0) / 2
    loss.backward()
    assert torch.equal(gates.grad[:, 0], torch.full((4,), 2.0 * 2 * 0.5 / 2 / 4))


def test_gates_are_open_as_often_as_their_sigmoid_and_pass_its_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.full((20_000, 1), math.log(0.85 / 0.15), requires_grad=True)
    gates = straight_gates(logits, training=True)
    assert set(gates.detach().unique().tolist()) == {0.0, 1.0}
    assert abs(float(gates.detach().mean()) - 0.85) < 0.01
    gates.sum().backward()
    assert bool((logits.grad > 0).all())
    assert float(logits.grad.max()) <= 0.25
    assert torch.equal(straight_gates(logits, training=False), torch.ones(20_000, 1))


def test_blocks_without_an_identity_skip_are_told() -> None:
    net = layer_skip("dggraph:resnet14_4")
    assert net.report.changed == ("layer1.0", "layer1.1", "layer2.1", "layer3.1")
    assert ("layer2.0", "its skip is not the identity") in net.report.unchanged
    with pytest.raises(InputError, match="rate=70 is a share of the images"):
        layer_skip("dggraph:resnet14_4", rate=70)
    with pytest.raises(InputError, match="layer_skip found nothing to change in VGG"):
        layer_skip("vgg11", torch.zeros(1, 3, 32, 32))
