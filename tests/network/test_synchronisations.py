"""Nothing on the dense path makes the host wait for the GPU; the sparse path waits once a stage.

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
from dggraph.network import decisions, execution
from dggraph.network.network import DynamicNetwork
from dggraph.ops import device_copies, rows

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


class Reads:
    """Counts copies to the host, and collects what Python reads from tensors besides."""

    METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies, self.others, self.is_copying = 0, list[str](), False
        for method in self.METHODS:
            monkeypatch.setattr(torch.Tensor, method, self.watched(getattr(torch.Tensor, method)))
        for module in (execution, decisions):
            monkeypatch.setattr(module, "to_lists", self.counted(device_copies.to_lists))
            monkeypatch.setattr(module, "number", self.allowed(device_copies.number))
        monkeypatch.setattr(decisions, "to_host", self.counted(device_copies.to_host))

    def watched(self, method: Any) -> Any:
        def read(*arguments: Any, **options: Any) -> Any:
            if not self.is_copying:
                self.others.append(method.__name__)
            return method(*arguments, **options)

        return read

    def allowed(self, function: Any) -> Any:
        def call(*tensors: Tensor) -> Any:
            self.is_copying = True
            try:
                return function(*tensors)
            finally:
                self.is_copying = False

        return call

    def counted(self, function: Any) -> Any:
        def copy(*tensors: Tensor) -> Any:
            self.copies += 1
            return self.allowed(function)(*tensors)

        return copy


def with_paths_of_its_own(router: str) -> tuple[DynamicNetwork, Tensor]:
    """A network in eval mode whose images take several paths, and such images."""
    net = converted(router)
    for name, parameter in net.named_parameters():
        if name.startswith("dg_"):
            nn.init.normal_(parameter, std=2.0)
    return net.eval(), torch.randn(5, 3, 16, 16) + 3 * torch.randn(5, 3, 1, 1)


@pytest.mark.cpu
@pytest.mark.parametrize("num_images", [1, 5])
def test_stage_routers_are_read_once_a_stage(
    num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = with_paths_of_its_own("stage")
    with torch.no_grad():
        for _ in range(3):  # until it is inlined
            net(x)
        reads = Reads(monkeypatch)
        net(x[:num_images])
    assert net.last_run == "sparse"
    assert reads.copies == len(net.graph.stages)
    assert reads.others == []


@pytest.mark.cpu
@pytest.mark.parametrize("num_images", [1, 5])
def test_node_routers_are_read_once_a_node(
    num_images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = with_paths_of_its_own("node")
    num_nodes = sum(len(net.graph.nodes(stage)) - 1 for stage in net.graph.stages)
    with torch.no_grad():
        for _ in range(3):
            net(x)
        # sums as matrix products, which look at their result, are for the CPU alone
        monkeypatch.setattr(rows, "_sum_by_product", lambda *_given: False)
        reads = Reads(monkeypatch)
        net(x[:num_images])
    assert reads.copies <= num_nodes
    assert reads.others == []


@pytest.mark.cpu
@pytest.mark.parametrize("router", ["node", "stage"])
def test_untrained_routers_of_a_prepared_network_are_not_read(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They give every image the same, which is known beforehand."""
    net = dggraph.optimize_for_inference(converted(router))
    x = torch.randn(1 if router == "node" else 3, 3, 16, 16)
    with torch.no_grad():
        expected = net(x)
        reads = Reads(monkeypatch)
        found = net(x)
    assert reads.copies == 0
    assert reads.others == []
    assert torch.equal(found, expected)


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
