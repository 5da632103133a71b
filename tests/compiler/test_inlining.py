"""Inlined programs: bitwise what modules give, and never older than the modules."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils.parametrize import register_parametrization

import dggraph
from dggraph.compiler.inlining import MAX_PATIENCE
from dggraph.compiler.lowered import routing_of
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights


class Block(nn.Module):
    """One of every class that is inlined, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU6(inplace=True)
        self.reflected = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
        self.gelu, self.drop, self.same = nn.GELU(), nn.Dropout(0.5), nn.Identity()
        self.scale = nn.Parameter(torch.full((6, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        return x + self.drop(self.same(self.gelu(self.reflected(y)))) * self.scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(inplace=True))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))


X = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def inlined_net(router: str = "stage") -> Any:
    """A network whose passes are inlined already."""
    torch.manual_seed(0)
    backbone = Net().eval()
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    net = dggraph.convert(backbone, X, router=router).eval()
    with torch.no_grad():
        for _ in range(3):
            y = net(X)
    assert net._inliner.inlined is not None
    assert torch.equal(y, backbone(X))
    return net


@pytest.mark.parametrize("router", ["stage", "node"])
def test_only_calls_that_must_stay_are_left(router: str) -> None:
    net = inlined_net(router)
    calls = {
        type(module).__name__
        for step, _ in net._inliner.inlined.program.steps
        for piece in ([block.piece for block in step.blocks] if hasattr(step, "blocks") else [step])
        for module in called_by(piece.run)
    }
    assert calls == {"Conv2d", "GELU"}  # the one that reflects, and a class without a rule


def called_by(run: Callable[..., Any]) -> list[nn.Module]:

    return [value for value in run.__defaults__ or () if isinstance(value, nn.Module)]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weight in place": lambda net: net.blocks[1].conv.weight.mul_(2),
    "new parameter": lambda net: setattr(
        net.blocks[1].conv, "weight", nn.Parameter(net.blocks[1].conv.weight * 2)
    ),
    "parameter of a block": lambda net: setattr(
        net.blocks[1], "scale", nn.Parameter(torch.full((6, 1, 1), 2.0))
    ),
    "no bias": lambda net: setattr(net.blocks[1].conv, "bias", None),
    "new buffer": lambda net: setattr(net.blocks[0].norm, "running_mean", torch.ones(6)),
    "setting": lambda net: setattr(net.blocks[0].norm, "eps", 0.5),
    "padding mode": lambda net: (
        setattr(net.blocks[0].conv, "padding_mode", "circular"),
        setattr(net.blocks[0].conv, "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
    ),
    "another layer": lambda net: setattr(net.blocks[2], "norm", nn.GroupNorm(2, 6)),
    "another head": lambda net: setattr(net, "head", nn.Linear(6, 5)),
    "hook": lambda net: net.blocks[0].act.register_forward_hook(lambda _m, _i, y: y * 2),
    "hook before": lambda net: net.head.register_forward_pre_hook(lambda _m, x: (x[0] * 2,)),
    "loaded": lambda net: net.load_state_dict(
        {key: value + 0.1 for key, value in net.state_dict().items()}
    ),
    "data": lambda net: setattr(net.head.weight, "data", net.head.weight * 3),
    "patched forward": lambda net: setattr(net.head, "forward", lambda x: x[:, :5] * 3),
    "dropout in training mode": lambda net: net.blocks[0].drop.train(),
    "class of a layer": lambda net: setattr(net.blocks[0].conv, "__class__", Doubled),
    "a method that forward calls": lambda net: setattr(
        net.blocks[0].conv, "_conv_forward", lambda x, *_: x * 2
    ),
    "a new table of hooks": lambda net: (
        setattr(net.head, "_forward_hooks", OrderedDict()),
        run(net, 4),
        net.head.register_forward_hook(lambda _m, _i, y: y * 2),
    ),
    "weight behind a parametrization": lambda net: (
        register_parametrization(net.blocks[1], "scale", Scaled()),
        run(net, 4),
        net.blocks[1].parametrizations.scale[0].factor.mul_(3),
    ),
    "setting of numpy": lambda net: (
        setattr(net.blocks[0].norm, "eps", np.float64(0.5)),
        setattr(net.blocks[0].conv, "stride", (np.int64(1), np.int64(1))),
    ),
    "setting in place": lambda net: (
        setattr(net.blocks[0].conv, "padding", [1, 1]),
        setattr(net.blocks[0].conv, "dilation", [1, 1]),
        run(net, 4),
        net.blocks[0].conv.padding.__setitem__(0, 2),
        net.blocks[0].conv.dilation.__setitem__(0, 2),
    ),
    "bound of an activation": lambda net: setattr(net.blocks[0].act, "max_val", 0.1),
    "statistics of the batch": lambda net: setattr(
        net.blocks[1], "conv", nn.BatchNorm2d(6, track_running_stats=False)
    ),
}


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def run(net: Any, num_passes: int) -> None:
    for _ in range(num_passes):
        net(X)


def prepared_net() -> Any:
    net = dggraph.optimize_for_inference(inlined_net())
    with torch.no_grad():
        run(net, 3)
    return net


ON_NORMS = ("new buffer", "setting", "setting of numpy", "another layer")
"""Those that change a norm, which a prepared network has folded."""
CASES = [
    *((name, inlined_net) for name in CHANGES),
    *((name, prepared_net) for name in CHANGES if name not in ON_NORMS),
]


@pytest.mark.parametrize(("name", "make"), CASES)
def test_changes_count_at_once(name: str, make: Callable[[], Any]) -> None:
    net = make()
    with torch.no_grad():
        before = net(X)
        CHANGES[name](net)
        torch.manual_seed(1)
        found = net(X)
        assert not torch.equal(found, before)
        net.executor = "dense"
        torch.manual_seed(1)
        torch.testing.assert_close(found, net(X), rtol=1e-5, atol=1e-6)
        net.executor = "auto"
        for _ in range(8):  # and where it has been inlined again
            torch.manual_seed(1)
            torch.testing.assert_close(found, net(X), rtol=1e-5, atol=1e-6)


def test_norms_in_training_mode_are_not_inlined() -> None:
    net = inlined_net()
    norm = net.blocks[0].norm
    norm.train()
    with torch.no_grad():
        for _ in range(6):
            mean = norm.running_mean.clone()
            net(X)
            assert not torch.equal(norm.running_mean, mean)
            assert net._inliner.inlined is None  # it would normalise the images that run alone


def test_a_method_patched_on_a_class_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    net = inlined_net()
    forward = nn.Linear.forward
    with torch.no_grad():
        before = net(X)
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: forward(self, x) * 2)
        for _ in range(4):
            assert torch.equal(net(X), before * 2)
        monkeypatch.undo()
        assert torch.equal(net(X), before)


def test_waiting_has_an_end() -> None:
    net = inlined_net()
    with torch.no_grad():
        for _ in range(15):
            net.head.bias = nn.Parameter(net.head.bias * 1.0)
            net._inliner.wait = 0
            run(net, 1)
            net._inliner.wait = 0
            run(net, 1)
        assert net._inliner.patience == MAX_PATIENCE


def test_hooks_on_all_modules_see_every_call() -> None:
    net, seen = inlined_net(), []
    handle = register_module_forward_hook(lambda module, _i, _o: seen.append(type(module)))
    try:
        with torch.no_grad():
            net(X)
    finally:
        handle.remove()
    assert seen.count(nn.BatchNorm2d) == 4
    seen.clear()
    with torch.no_grad():
        net(X)
    assert not seen


def test_another_dtype_is_that_of_the_modules() -> None:
    net = inlined_net().double()
    with torch.no_grad():
        assert all(net(X.double()).dtype == torch.float64 for _ in range(4))


def test_weights_that_change_at_every_pass_are_not_inlined_at_every_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dggraph.compiler import inlining

    net, made = inlined_net(), []
    inline = inlining.inline
    monkeypatch.setattr(inlining, "inline", lambda *args: made.append(1) or inline(*args))
    with torch.no_grad():
        for _ in range(40):
            net.head.weight = nn.Parameter(net.head.weight * 1.0)
            net(X)
    assert 0 < len(made) <= 5


@pytest.mark.parametrize("make", [lambda net: net, dggraph.optimize_for_inference])
def test_another_axis_of_a_router(make: Callable[[Any], Any]) -> None:
    blocks = [nn.Conv2d(3 if place == 0 else 8, 8, 3, padding=1) for place in range(4)]
    x = torch.rand(1, 3, 8, 8)
    net = dggraph.convert(nn.Sequential(*blocks).eval(), x, router="stage").eval()
    (name,) = net.graph.stages
    routing_of(net.lowered, name).router_0.weight.data.normal_()
    net = make(net)
    with torch.no_grad():
        for _ in range(20):
            before = net(x)
        routing_of(net.lowered, name).router_0.channel_axis = -1
        found = net(x)
        assert not torch.equal(found, before)
        net.executor = "dense"
        torch.testing.assert_close(found, net(x))


def test_a_copy_inlines_its_own_weights() -> None:
    net = inlined_net()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = net(X)
        for _ in range(3):
            twin(X)
        twin.head.weight.zero_()
        assert torch.equal(twin(X), twin.head.bias.expand(2, -1))
        assert torch.equal(net(X), before)


@pytest.mark.parametrize("router", ["stage", "node"])
def test_routers_are_bound_again_after_hooks_on_gates(router: str) -> None:
    """Also those that `convert` itself had on them in its checks."""

    def is_bound(net: Any) -> bool:
        (step,) = (
            step for step, _ in net._inliner.inlined.program.steps if hasattr(step, "topology")
        )
        names = {decide.__qualname__ for decide in step.routing.decide.values()}
        return names == {"bound_decision.<locals>.decide_in_float32"}

    net = inlined_net(router)
    assert is_bound(net)
    with torch.no_grad():
        before = net(X)
        with pinned_gates(net, {stage: 0.9 * w for stage, w in static_weights(net.graph).items()}):
            for _ in range(5):
                assert not torch.equal(net(X), before)
            assert not is_bound(net)
        for _ in range(5):
            assert torch.equal(net(X), before)
    assert is_bound(net)
