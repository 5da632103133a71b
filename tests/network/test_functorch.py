"""torch.func over converted networks: what it vectorises equals what it does one by one."""

import copy

import pytest
import torch
from kinds import KINDS, converted
from reference import randomise_routers
from torch import Tensor
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap

X = torch.linspace(-1, 1, 3 * 3 * 16 * 16, dtype=torch.float64).reshape(3, 3, 16, 16)


@pytest.mark.parametrize(
    ("kind", "router"), [*((kind, "node") for kind in KINDS), ("lifted", "stage")]
)
def test_gradients_of_each_sample(kind: str, router: str) -> None:
    net = converted(kind, router).double()
    if kind == "tokens":
        net.train()  # straight-through
        net.lowered.get_submodule(
            "stem"
        ).eval()  # running statistics are nothing that functorch lets change
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        squares: Tensor = functional_call(net, parameters, (x[None],)).square().sum()
        return squares

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, X)
    for index, x in enumerate(X):
        alone = grad(loss)(parameters, x)
        net.zero_grad()
        net(x[None]).square().sum().backward()
        for key, parameter in parameters.items():
            torch.testing.assert_close(together[key][index], alone[key], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(alone[key], parameter.grad, rtol=1e-10, atol=1e-12)


def test_an_ensemble_in_one_call() -> None:
    nets = [converted("lifted"), converted("lifted")]
    randomise_routers(nets[1], seed=5)
    parameters, buffers = stack_module_state(nets)
    empty = copy.deepcopy(nets[0]).to("meta")
    x = X.float()
    outputs = vmap(lambda p, b: functional_call(empty, (p, b), (x,)))(parameters, buffers)
    for net, output in zip(nets, outputs, strict=True):
        torch.testing.assert_close(output, net(x), rtol=1e-5, atol=1e-5)


def test_a_jacobian_is_its_rows() -> None:
    net = converted("kept").double()
    jacobian = jacrev(lambda x: net(x[None])[0])(X[0])
    x = X[:1].clone().requires_grad_()
    for output, row in zip(net(x)[0], jacobian, strict=True):
        (expected,) = torch.autograd.grad(output, x, retain_graph=True)
        torch.testing.assert_close(row, expected[0], rtol=1e-10, atol=1e-12)
