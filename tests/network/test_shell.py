"""What the backbone's own class does otherwise than every module is done on the converted network
too: modes, state dicts, moves, roots.
"""

import copy
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Net, X
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import dggraph
from dggraph.errors import BackboneOnlyError
from dggraph.network.network import DynamicNetwork

pytestmark = pytest.mark.cpu


def converted(backbone: nn.Module) -> DynamicNetwork:
    return dggraph.convert(backbone, X[:1])


def keep_norms(self: nn.Module, mode: bool = True) -> nn.Module:
    nn.Module.train(self, mode)
    for module in self.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return self


def test_a_train_that_is_set_on_the_backbone_is_called_on_the_network() -> None:
    backbone = Net().eval()
    backbone.train = types.MethodType(keep_norms, backbone)
    net = converted(backbone)
    for one in (net, copy.deepcopy(net)):
        assert one.train() is one
        assert one.training
        assert one.blocks[0].training
        assert not one.blocks[0].norm.training
    assert not backbone.training


def test_a_closure_over_the_backbone_works_on_the_network() -> None:
    backbone = Net().eval()
    before = backbone.train

    def train(mode: bool = True) -> nn.Module:
        before(mode)
        backbone.blocks[0].norm.eval()
        return backbone

    backbone.train = train
    net = converted(backbone).train()
    assert [block.norm.training for block in net.blocks] == [
        False,
        True,
        True,
    ]
    assert not backbone.training
    assert [block.norm.training for block in copy.deepcopy(net).eval().train().blocks] == [
        False,
        True,
        True,
    ]


def test_a_train_that_does_nothing_and_returns_anything() -> None:
    backbone = Net().eval()
    backbone.train = lambda mode=True: None
    net = converted(backbone)
    assert not net.train().training
    assert not net.blocks.training
    assert torch.equal(net(X), backbone(X))


class Own(Net):
    """With versions of its own of what every module has."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.grid = torch.linspace(0, 1, 8)[:, None, None]
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x) + self.grid))
        return logits

    def _apply(self, fn: Any) -> "Own":
        super()._apply(fn)
        self.grid = fn(self.grid)
        return self

    def eval(self) -> "Own":
        super().eval()
        self.seen = "eval"
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "Own":
        super().requires_grad_(requires_grad)
        self.stem.requires_grad_(False)
        return self

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 7}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["steps"]


def test_moves_take_along_what_the_backbone_moves() -> None:
    backbone = Own().eval()
    net = converted(backbone)
    for one in (net, copy.deepcopy(net)):
        one.double()
        assert one.grid.dtype == torch.float64
        assert torch.equal(one(X.double()), copy.deepcopy(backbone).double()(X.double()))


def test_modes_and_freezing_are_those_of_the_backbone() -> None:
    net = converted(Own())
    net.seen = None
    assert net.eval().seen == "eval"
    net.requires_grad_(True)
    assert not net.stem.weight.requires_grad
    assert net.head[2].weight.requires_grad


def test_extra_state_and_version_belong_to_the_state_dict() -> None:
    net = converted(Own())
    state = net.state_dict()
    assert state["_extra_state"] == {"steps": 7}
    assert state._metadata[""] == {"version": 2}
    net.load_state_dict(state)
    assert net.seen == 7


class Renamed(Net):
    """Its state dict has other keys than its parameters."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        state = super().state_dict(*args, **options)
        return type(state)(
            (key.replace("stem.", "conv_stem."), value) for key, value in state.items()
        )

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        return super().load_state_dict(
            {key.replace("conv_stem.", "stem."): value for key, value in state_dict.items()}, strict
        )


def test_a_state_dict_of_the_backbones_own_making(tmp_path: Path) -> None:
    backbone, other = Renamed().eval(), Renamed().eval()
    net, twin = converted(backbone), converted(other)
    assert "conv_stem.weight" in net.state_dict()
    assert twin.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys == []
    assert torch.equal(twin(X), backbone(X))
    assert not torch.equal(twin(X), other(X))
    twin.load_state_dict({f"lowered.{key}": value for key, value in net.state_dict().items()})
    dggraph.save(net, tmp_path / "archive")
    assert torch.equal(dggraph.load(tmp_path / "archive", model=other)(X), net(X))


class Hooking(Net):
    """Reads old keys by hooks on its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._register_load_state_dict_pre_hook(self.rename)
        self.register_load_state_dict_pre_hook(note)

    def rename(self, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}old.")]:
            state[prefix + key.removeprefix(f"{prefix}old.")] = state.pop(key)
        self.calls.append("rename")


def note(module: nn.Module, *_rest: Any) -> None:
    module.calls.append(type(module).__name__)


def test_hooks_on_the_state_dict_come_along() -> None:
    backbone = Hooking()
    net = converted(backbone)
    twin = copy.deepcopy(net)
    state = {
        f"old.{key}" if key.startswith("stem") else key: value
        for key, value in net.state_dict().items()
    }
    for one in (net, twin, nn.Sequential(twin)[0], dggraph.optimize_for_inference(net)):
        one.calls.clear()
        one.load_state_dict(state, strict=False)
        assert one.calls == ["rename", "Hooking"]
    assert backbone.calls == []


class Placed(Net):
    """With a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.linspace(0, 1, 8)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x) + self.place))
        return logits


class Twice(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def parametrised(model: nn.Module) -> None:
    parametrize.register_parametrization(model, "place", Twice())


def pruned(model: nn.Module) -> None:
    prune.l1_unstructured(model, "place", 4)


def plain(model: nn.Module) -> None:
    value = 3 * model.place.detach()
    del model.place
    model.place = value


@pytest.mark.parametrize("change", [parametrised, pruned, plain])
def test_a_parameter_of_the_root_may_be_computed(change: Any) -> None:
    backbone = Placed().eval()
    net = converted(backbone)
    change(backbone)
    change(net)
    for executor in ("dense", "sparse"):
        net.executor = executor
        with torch.no_grad():
            assert torch.equal(net(X), backbone(X))
    if change is not pruned:  # a hook that assigns is nothing to export
        assert torch.equal(torch.export.export(net, (X,)).module()(X), backbone(X))
    if change is parametrised:
        assert torch.equal(copy.deepcopy(net)(X), backbone(X))
        net(X).sum().backward()
        assert net.parametrizations.place.original.grad is not None
        parametrize.remove_parametrizations(net, "place")
    elif change is pruned:
        prune.remove(net, "place")
    assert torch.equal(net(X), backbone(X))
    del net.place
    net.place = nn.Parameter(torch.zeros(8, 1, 1))
    assert not torch.equal(net(X), backbone(X))
    assert "place" in net.state_dict()


def test_a_plain_tensor_may_become_a_parameter() -> None:
    backbone = Own().eval()
    net = converted(backbone)
    for model in (backbone, net):
        model.grid = nn.Parameter(torch.ones(8, 1, 1))
    assert torch.equal(net(X), backbone(X))
    assert "grid" in net.state_dict()


def test_data_parallel_is_refused_where_it_would_copy() -> None:
    net = converted(Net().eval())
    assert torch.equal(nn.DataParallel(net)(X), net(X))  # no device to copy to
    with pytest.raises(BackboneOnlyError, match=r"DataParallel.*Use DistributedDataParallel"):
        net._replicate_for_data_parallel()
