"""GaterNet's gates, loss and masks, computed by hand."""

import torch

from dggraph.baselines import gaternet
from dggraph.baselines.filter_gates import hash_gates

X = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).sin()


def test_half_of_the_images_get_binary_gates_and_all_the_soft_gradient() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(4000, 3) * 2).requires_grad_()
    torch.manual_seed(7)
    gates = hash_gates(logits, training=True)
    torch.manual_seed(7)
    noisy = logits.detach() + torch.randn(4000, 3)
    soft = (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1)
    is_hard = (gates.detach() - soft).abs().amax(1) > 1e-6
    assert 0.4 < float(is_hard.float().mean()) < 0.6
    assert torch.allclose(gates.detach()[is_hard], (noisy > 0).float()[is_hard], atol=1e-6)
    gates.sum().backward()
    slope = 1.2 * noisy.sigmoid() * (1 - noisy.sigmoid())
    expected = torch.where((soft > 0) & (soft < 1), slope, 0)
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_without_training_gates_are_the_signs() -> None:
    logits = torch.tensor([[-0.1, 0.0, 0.1]])
    assert hash_gates(logits, training=False).tolist() == [[0.0, 0.0, 1.0]]


def test_the_loss_is_the_mean_gate_times_its_factor() -> None:
    net = gaternet("dggraph:resnet14_4", sparsity=0.5)
    assert float(net.auxiliary_loss({"gates": torch.tensor([[1.0, 0.0], [1.0, 1.0]])})) == 0.375


@torch.no_grad()
def test_a_closed_filter_is_zero_behind_its_norm() -> None:
    net = gaternet("dggraph:resnet14_4").eval()
    net.dg_method.gater.expand.bias[1] = -1.0  # the second filter of the first convolution
    seen = []
    net.get_submodule("layer1.0.conv2").register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    _, values = net(X, return_values=True)
    assert values["gates"].shape == (2, 4 * 4 + 5 * 8 + 5 * 16)
    assert bool((seen[0][:, 1] == 0).all())
    assert bool((seen[0][:, 0] != 0).any())
