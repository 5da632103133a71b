"""What is set for all of torch around a conversion does not leak into what conversion makes."""

import builtins
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from kinds import Kept
from reference import randomise_routers
from small import Net, X
from torch import Tensor, nn

import dggraph
from dggraph.compiler.fingerprints import fingerprint
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.compiler.tracing import trace
from dggraph.errors import InputError


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


Around = Callable[[], AbstractContextManager[object]]
AROUND: dict[str, Around] = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "with device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("router", ["node", "stage(4)"])
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_conversion_is_the_same_whatever_is_around_it(around: Around, router: str) -> None:
    model = Net().eval()
    torch.manual_seed(0)
    plain = dggraph.convert(model, X, router=router)
    torch.manual_seed(0)
    with around():
        net = dggraph.convert(model, X, router=router)
    for (key, ours), (_, theirs) in zip(
        net.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert ours.dtype == theirs.dtype, key
        assert torch.equal(ours, theirs), key
        assert not ours.is_inference(), key
    assert net.blueprint == plain.blueprint
    assert torch.equal(net(X), model(X))
    net.train()(X).square().sum().backward()
    assert all(
        parameter.grad is not None
        for name, parameter in net.named_parameters()
        if ".hidden" not in name
    )


@pytest.mark.parametrize("name", ["inference mode", "default device"])
def test_an_archive_loads_whatever_is_around_it(name: str, tmp_path: Path) -> None:
    model = Net().eval()
    net = dggraph.convert(model, X)
    with AROUND[name]():
        dggraph.save(net, tmp_path / "net", labels=list("abcde"))
        loaded = dggraph.load(tmp_path / "net", model)
    assert torch.equal(loaded(X), model(X))
    assert not any(value.is_inference() for value in loaded.state_dict().values())
    loaded.train()(X).sum().backward()


def test_everyday_calls_under_another_default_device() -> None:
    net = dggraph.convert(Net().eval(), X)
    with default_device("meta"):
        assert dggraph.record(net, X).macs.device.type == "cpu"
        dggraph.calibrate(net, [X])
        dggraph.recalibrate_norms_(net, [X])
        assert dggraph.optimize_for_inference(net)(X).device.type == "cpu"


@pytest.mark.parametrize(
    "options",
    [
        {"router": "node"},
        {"router": "stage"},
        {"router": "stage", "gate": "shrink", "granularity": "channel"},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", [16, 128])
def test_networks_run_under_another_default_device(options: dict[str, str], side: int) -> None:
    net = randomise_routers(dggraph.convert(Net(Kept), X, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, side, side, generator=generator)
    with torch.no_grad():
        for threshold in (0.0, 0.5):
            net.set_threshold(threshold)
            for one in (net, dggraph.optimize_for_inference(net)):
                for images in (x, x[:1]):
                    expected = one(images)
                    with default_device("meta"):
                        assert torch.equal(one(images), expected)
                        _, gates = one(images, return_gates=True)
                        assert gates.macs().device.type == "cpu"


def test_inference_tensors_become_ordinary_ones() -> None:
    with torch.inference_mode():
        model = Net()
        inside = dggraph.convert(model, X)
    ordinary = Net()
    ordinary.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    ordinary(X).sum().backward()
    expected = {key: parameter.grad for key, parameter in ordinary.named_parameters()}
    for net in (inside, dggraph.convert(model, X)):
        net.train()(X).sum().backward()
        found = {key: parameter.grad for key, parameter in net.named_parameters()}
        assert all(torch.equal(found[key], gradient) for key, gradient in expected.items())


@pytest.mark.parametrize("path", ["", "head"])
def test_weights_without_values_are_refused(path: str) -> None:
    model = Net()
    model.get_submodule(path).to("meta")
    with pytest.raises(InputError, match=r"(stem|head\.2)\.weight' is on the meta device"):
        dggraph.convert(model, X)


class Ramp(Net):
    """Makes tensors without saying where: one of a traced size, one of a fixed size."""

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        return features + torch.arange(features.shape[-1]) * torch.linspace(0, 1, 8)


def test_a_default_device_is_not_written_into_the_graph() -> None:
    """It would change the fingerprint, and keep the network from moving."""
    alone = trace(Ramp())
    with default_device("meta"), ordinary_surroundings(torch.device("cpu")):
        traced = trace(Ramp())
    assert fingerprint(traced.graph) == fingerprint(alone.graph)
    assert all(buffer.device.type == "cpu" for buffer in traced.module.buffers())


def test_half_precision_on_the_cpu() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = Net().to(dtype).eval()
        net = dggraph.convert(model, X)
        assert torch.equal(net(X.to(dtype)), model(X.to(dtype)))
        net.train()(X.to(dtype)).float().sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_frozen_backbone_trains_its_routers() -> None:
    net = dggraph.convert(Net().requires_grad_(False), X).train()
    net(X).sum().backward()
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None} == {
        "dg_blocks"
    }


def test_shared_modules_stay_shared() -> None:
    model = Net()
    model.blocks[1] = model.blocks[0]
    net = dggraph.convert(model.eval(), X)
    assert net.lowered.get_submodule("blocks.1") is net.lowered.get_submodule("blocks.0")
    assert torch.equal(net(X), model(X))
    assert isinstance(model.blocks[0], nn.Module)


def test_threads_convert_in_turns() -> None:
    """A trace replaces functions of the whole process, and puts them back in its turn."""
    order, others = list[str](), list[threading.Thread]()

    class Second(Net):
        def features(self, x: Tensor) -> Tensor:
            order.append("second")
            return super().features(x)

    class First(Net):
        def features(self, x: Tensor) -> Tensor:
            if not others:
                others.append(threading.Thread(target=dggraph.convert, args=(Second(), X)))
                others[0].start()
                others[0].join(0.2)  # it cannot end, since this conversion has not
            order.append("first")
            return super().features(x)

    before = builtins.isinstance, builtins.len, vars(nn.Module)["__setattr__"]
    dggraph.convert(First(), X)
    others[0].join()
    assert order == sorted(order)
    assert {"first", "second"} == set(order)
    assert (builtins.isinstance, builtins.len, vars(nn.Module)["__setattr__"]) == before
