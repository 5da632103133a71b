"""Nothing on the dense path makes the host wait for the GPU.

Without a GPU, tensors that only claim to be on one show every copy between devices and every value
that Python reads. On a GPU, torch itself raises an error where it would wait.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dggraph
from dggraph.models.small_resnet import SmallResNet
from dggraph.network.network import DynamicNetwork

READS = ("_local_scalar_dense", "nonzero", "item", "masked_select")


class Crossings(TorchDispatchMode):
    """Collects operations that read values on the host, or copy between devices and wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        # numbers (0-d) on the host are arguments of kernels, which nothing waits for
        devices = {one.device.type for one in inputs if one.ndim} | {
            one.device.type for one in outputs
        }
        waits = len(devices) > 1 and not kwargs.get("non_blocking")
        if waits or any(name in str(operation) for name in READS):
            self.found.append(str(operation))
        return result


def moved_(module: nn.Module, device: str) -> None:
    """Replace all weights by empty ones on `device`. In place."""
    for one in module.modules():
        for name, parameter in list(one._parameters.items()):
            if parameter is not None:
                empty = torch.empty_like(parameter, device=device)
                one._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
        for name, buffer in list(one._buffers.items()):
            if buffer is not None:
                one._buffers[name] = torch.empty_like(buffer, device=device)


def loss_of(net: DynamicNetwork, x: Tensor, labels: Tensor) -> Tensor:
    logits, gates = net(x, return_gates=True)
    return nn.functional.cross_entropy(logits, labels) + dggraph.losses.budget(gates, 0.8)


def converted(router: str) -> DynamicNetwork:
    return dggraph.convert(SmallResNet(14, 4), torch.zeros(1, 3, 16, 16), router=router)


@pytest.mark.parametrize("router", ["node", "stage"])
def test_no_step_of_a_dense_pass_waits(router: str) -> None:
    net = converted(router)
    net.executor = "dense"
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved_(net, "cuda")
        x = torch.empty(2, 3, 16, 16, device="cuda")
        labels = torch.empty(2, dtype=torch.long, device="cuda")
        with Crossings() as crossings:
            loss = loss_of(net.train(), x, labels)
            with torch.no_grad():
                net.eval()(x)
    assert loss.device.type == "cuda"
    assert not crossings.found, crossings.found


def test_what_would_wait_is_seen() -> None:
    """The check itself: each of these stops the host."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, 4, device="cuda")
        for statement in (lambda: x[:, [0, 2]], lambda: x.cpu(), lambda: x.new_tensor([1.0])):
            with Crossings() as crossings:
                statement()
            assert crossings.found


@pytest.fixture
def _refuse_waiting() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here, on which waiting could be refused")
    torch.cuda.init()
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.usefixtures("_refuse_waiting")
@pytest.mark.parametrize("router", ["node", "stage"])
def test_a_gpu_never_waits_in_training_or_dense_inference(router: str) -> None:
    net = converted(router).cuda()
    net.executor = "dense"
    x = torch.randn(2, 3, 16, 16).cuda()
    labels = torch.tensor([0, 1]).cuda()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for mode in ("default", "error"):  # the first round compiles kernels
        torch.cuda.set_sync_debug_mode(mode)
        loss = loss_of(net.train(), x, labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            output = net.eval()(x)
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
    assert output.isfinite().all()
