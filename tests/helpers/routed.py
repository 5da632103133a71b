"""Converted `random_nets`, images for them, and routers trained to keep answers."""

from typing import Any

import torch
from random_nets import Net
from reference import randomise
from torch import Tensor, nn

import dggraph
from dggraph.network.network import DynamicNetwork


def convert(
    kind: str, router: str, depth: int = 4, seed: int = 1
) -> tuple[nn.Module, DynamicNetwork]:
    model = randomise(Net(kind, depth), seed).double().eval()
    return model, dggraph.convert(
        model, torch.zeros(1, 3, 6, 6, dtype=torch.float64), router=router
    )


def images(count: int, seed: int) -> Tensor:
    """Noise of many colours: routers see colour."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    noise = torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return noise + 2 * torch.randn(count, 3, 1, 1, generator=generator, dtype=torch.float64)


def train_routers(
    net: DynamicNetwork, model: nn.Module, target: float | None, num_steps: int, seed: int
) -> float:
    """Teach the routers to keep the backbone's answers, within a budget or without; returns the
    error on other images.
    """
    routers = [parameter for name, parameter in net.named_parameters() if name.startswith("dg_")]
    optimiser = torch.optim.Adam(routers, lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.01, num_steps)
    for step in range(num_steps):
        x = images(32, 1000 * (seed + 1) + step).to(routers[0].dtype)
        with torch.no_grad():
            wanted = model(x)
        output, gates = net.train()(x, return_gates=True)
        loss = (output - wanted).square().mean() / wanted.var()
        if target is not None:
            loss = loss + 30 * dggraph.losses.budget(gates, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x = images(512, 10**6 + seed).to(routers[0].dtype)
    with torch.no_grad():
        return float((net.eval()(x) - model(x)).square().mean() / model(x).var())


def run(net: Any, x: Tensor, executor: str) -> tuple[Tensor, Any]:
    """Output and gates of a pass without gradients."""
    net.executor = executor
    with torch.no_grad():
        output, gates = net(x, return_gates=True)
    return output, gates


def assert_all_learn(net: DynamicNetwork, x: Tensor, num_steps: int) -> None:
    """Every parameter has a gradient once `num_steps` steps were made. In place.

    What lies behind a layer that starts at zero gets none before that layer has moved.
    """
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(num_steps):
        net(x).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    net(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def assert_executors_agree(net: Any, x: Tensor) -> tuple[Any, Any]:
    """Dense, sparse and one by one, to 1e-12; returns the gates of dense and sparse."""
    dense, gates = run(net, x, "dense")
    sparse, sparse_gates = run(net, x, "sparse")
    assert net.last_run == "sparse"
    alone = torch.cat([run(net, one, "sparse")[0] for one in x.split(1)])
    tolerance = 1e-12 * float(dense.abs().max())
    assert float((sparse - dense).abs().max()) <= tolerance
    assert float((alone - dense).abs().max()) <= tolerance
    return gates, sparse_gates
