"""A converted network is used as one would use its backbone: names, assignment, state dicts, modes,
attributes, copies.
"""

import copy
import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn

import dggraph
from dggraph.errors import BackboneOnlyError, InputError, LoweringError
from dggraph.network.network import DynamicNetwork
from dggraph.ops.routing import LinearRouter

pytestmark = pytest.mark.cpu


def converted(backbone: nn.Module | None = None) -> DynamicNetwork:
    """With routers that decide something."""
    net = dggraph.convert(backbone or Net().eval(), X[:1])
    for router in net.modules():
        if isinstance(router, LinearRouter):
            nn.init.normal_(router.bias)
    return net


def test_names_are_those_of_the_backbone_behind_the_routing() -> None:
    backbone = Net()
    net = converted(backbone)
    routing, rest = ["dg_blocks"], [name for name, _ in backbone.named_children()]
    assert [name for name, _ in net.named_children()] == routing + rest
    of_backbone = [name for name, _ in net.named_parameters() if not name.startswith("dg_")]
    assert of_backbone == [name for name, _ in backbone.named_parameters()]
    heads = list(net.parameters())[-2:]
    assert [a is b for a, b in zip(heads, net.head[2].parameters(), strict=True)] == [True, True]
    assert list(net.state_dict()) == list(net.lowered.state_dict())
    assert net.lowered.get_submodule("head") is net.head is net.get_submodule("head")


def test_a_state_dict_of_the_backbone_loads_by_its_own_keys() -> None:
    net, other = converted(), Net()
    missing, unexpected = net.load_state_dict(other.state_dict(), strict=False)
    assert unexpected == []
    assert missing
    assert all(key.startswith("dg_") for key in missing)
    assert torch.equal(net.stem.weight, other.stem.weight)
    with pytest.raises(RuntimeError, match=r'Missing key.*"dg_blocks.threshold"'):
        net.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [lambda net: net, lambda net: nn.Sequential(net), lambda net: nn.ModuleDict({"body": net})],
)
def test_checkpoints_with_keys_behind_lowered_still_load(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    net, twin = converted(), converted()
    model, other = wrap(net), wrap(twin)
    prefix = next(
        name + "." if name else "" for name, module in model.named_modules() if module is net
    )
    state = {
        prefix + "lowered." + key.removeprefix(prefix): value
        for key, value in model.state_dict().items()
    }
    other.load_state_dict(state)
    assert torch.equal(twin(X), net(X))
    assert all(key.startswith(f"{prefix}lowered.") for key in state)


def test_an_assigned_module_is_what_runs() -> None:
    net = converted()
    net.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    assert net(X).shape == (2, 2)
    net.blocks[1].conv1.weight = net.blocks[0].conv1.weight
    net.stem = nn.Conv2d(3, 8, 1, stride=2)
    with torch.no_grad():
        before = net(X)
        net.stem.weight.zero_()
        assert not torch.equal(net(X), before)
    net.register_buffer("note", torch.ones(1))
    assert "note" in net.lowered.state_dict()
    del net.note
    assert "note" not in net.lowered.state_dict()


def test_training_is_one_flag_however_it_is_set() -> None:
    net = converted()
    assert not net.training
    assert not net.lowered.training
    net.training = True
    assert net.lowered.training
    net.lowered.training = False
    assert not net.training
    assert net.train() is net
    assert net.lowered.training
    assert net.blocks.training


class KeepsNorms(Net):
    """Its norms stay in eval mode, as detection backbones' do."""

    norm_eval = True

    def train(self, mode: bool = True) -> "KeepsNorms":
        super().train(mode)
        for module in self.modules():
            if self.norm_eval and isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def test_train_is_the_one_of_the_backbone() -> None:
    net = converted(KeepsNorms())
    for one in (net, copy.deepcopy(net), nn.Sequential(net)[0]):
        one.eval().train()
        assert one.training
        assert one.blocks[0].training
        assert not one.blocks[0].norm.training
        assert one.dg_blocks.training
        assert not one.eval().training
        assert not one.blocks.training
    net.norm_eval = False
    assert net.train().blocks[0].norm.training


def test_a_copy_is_a_network_of_its_own() -> None:
    net = converted()
    net.head[2] = nn.Linear(8, 3)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(X), net(X))
    twin.head[2] = nn.Linear(8, 4)
    twin.remark = "mine"
    assert net(X).shape == (2, 3)
    assert twin(X).shape == (2, 4)
    assert not hasattr(net, "remark")
    assert twin.lowered.head is twin.head
    assert twin.lowered.head is not net.head
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(
        p.data_ptr() for p in net.parameters()
    )


def test_copies_of_a_network_compiled_in_place_run_their_own_weights() -> None:
    net = converted().eval()
    net.compile(backend="eager")
    for twin in (copy.deepcopy(net), dggraph.optimize_for_inference(net)):
        nn.init.zeros_(twin.head[2].weight)
        nn.init.ones_(twin.head[2].bias)
        with torch.no_grad():
            assert torch.equal(twin(X), torch.ones(2, 5))


def test_pickling_is_refused() -> None:
    for attempt in (pickle.dumps, lambda net: torch.save(net, io.BytesIO())):
        with pytest.raises(LoweringError, match=r"cannot be pickled.*dggraph\.save"):
            attempt(converted())


def test_running_the_children_is_refused() -> None:
    net = converted()
    with pytest.raises(BackboneOnlyError, match=r"child by child.*Slice the backbone first"):
        nn.Sequential(*list(net.children())[:-1])(X)


class Clashing(Net):
    """Children whose names are the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Conv2d(8, 8, 1)
        self.plan = nn.Parameter(torch.ones(1))
        self.lowered = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lowered(self.labels(self.features(x))) * self.plan)
        return logits


def test_a_name_of_ours_hides_but_does_not_replace_one_of_the_backbone() -> None:
    backbone = Clashing().eval()
    net = dggraph.convert(backbone, X[:1])
    assert torch.equal(net(X), backbone(X))
    assert net.labels is None
    assert net.load_state_dict(backbone.state_dict(), strict=False).unexpected_keys == []
    assert isinstance(net.get_submodule("labels"), nn.Conv2d)
    net.labels = ("a", "b")
    with pytest.raises(BackboneOnlyError, match=r"net\.lowered\.labels = "):
        net.labels = nn.Identity()
    net.lowered.labels = nn.Identity()
    assert torch.equal(copy.deepcopy(net)(X), net(X))
    assert not torch.equal(net(X), backbone(X))


class Described(Net):
    """With attributes and methods of many kinds."""

    pretrained = True

    def __init__(self) -> None:
        super().__init__(Block, depth=3)
        self.num_classes = 5
        self.default_cfg = {"mean": (0.5, 0.5, 0.5)}
        self.scale = 2.0
        self.pick = self.features

    @property
    def width(self) -> int:
        return self.stem.out_channels

    def get_classifier(self) -> nn.Module:
        return self.head

    def get_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def no_weight_decay(self) -> set[str]:
        return {"stem.bias"}

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x) * self.scale)
        return logits


def test_attributes_and_looking_methods_of_the_backbone_are_answered() -> None:
    net = converted(Described())
    assert net.num_classes == 5
    assert net.default_cfg == {"mean": (0.5, 0.5, 0.5)}
    assert net.pretrained
    assert net.width == 8
    net.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    assert net.get_classifier() is net.head
    routers = {name for name, _ in net.named_parameters() if name.startswith("dg_")}
    assert net.no_weight_decay() == {"stem.bias"} | routers
    assert routers
    net.num_classes = 2
    assert copy.deepcopy(net).num_classes == 2
    twin = copy.deepcopy(net)
    twin.default_cfg["mean"] = None
    assert net.default_cfg["mean"] is not None
    assert twin.get_classifier() is twin.head
    del net.num_classes
    assert not hasattr(net, "num_classes")
    assert hasattr(twin, "num_classes")


@pytest.mark.parametrize("name", ["features", "get_features", "reset_classifier", "pick"])
def test_methods_that_would_run_or_rebuild_the_backbone_are_refused(name: str) -> None:
    net = converted(Described())
    assert not hasattr(net, name)
    with pytest.raises(
        BackboneOnlyError, match=rf"Described\.{name} works on the static backbone.*convert"
    ):
        getattr(net, name)


def test_what_tracing_has_fixed_cannot_be_set() -> None:
    net = converted(Described())
    for value in (3.0, nn.Identity()):
        with pytest.raises(
            BackboneOnlyError, match=r"'scale' cannot be changed any more.*then convert"
        ):
            net.scale = value
    with pytest.raises(BackboneOnlyError, match="'scale'"):
        del net.scale
    assert net.scale == 2.0
    with pytest.raises(AttributeError, match="'nothing', and neither had the backbone"):
        _ = net.nothing


class ByName(Net):
    """Takes its images by another name than ours, a switch and a factor."""

    def forward(self, pixel_values: Tensor, doubled: bool = False, scale: float = 0.5) -> Tensor:
        logits = super().forward(pixel_values) * scale
        return 2 * logits if doubled else logits


def test_images_by_the_name_that_the_backbone_has_for_them() -> None:
    net = converted(ByName().eval()).eval()
    assert torch.equal(net(pixel_values=X), net(X))
    assert torch.equal(net(pixel_values=X, doubled=False), net(X))
    assert torch.equal(net(pixel_values=X, scale=float("0.5")), net(X))
    _, gates = net(pixel_values=X, return_gates=True)
    assert list(gates.weights) == ["blocks"]
    with pytest.raises(
        BackboneOnlyError,
        match=r"'doubled' cannot be passed .* default, False\. Compute a loss from the network's",
    ):
        net(X, doubled=True)
    for wrong, message in (
        ({}, r"call net\(x\), or net\(pixel_values=x\)"),
        ({"images": X}, r"no argument 'images'. It takes images: net\(x\) or net\(pixel_values=x"),
    ):
        with pytest.raises(InputError, match=message):
            net(**wrong)
    with pytest.raises(InputError, match="images once, by position or as 'pixel_values'"):
        net(X, pixel_values=X)


class Configured(Net):
    """As transformers does: a flag that is None is that of the configuration."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(return_dict=True, doubled=False)

    def forward(
        self, pixel_values: Tensor, return_dict: bool | None = None, **flags: bool
    ) -> Tensor | tuple[Tensor]:
        logits = super().forward(pixel_values)
        if flags.get("doubled", self.config.doubled):
            logits = logits * 2
        return logits if (return_dict or self.config.return_dict) else (logits,)


def test_flags_that_say_what_the_configuration_says_change_nothing() -> None:
    net = dggraph.convert(Configured().eval(), X)
    assert torch.equal(net(X, return_dict=True, doubled=False), net(X))
    with pytest.raises(BackboneOnlyError, match="'return_dict' cannot be passed"):
        net(X, return_dict=False)
    with pytest.raises(InputError, match="no argument 'doubled'"):
        net(X, doubled=True)


def test_a_sequence_is_indexed_as_the_backbone_is() -> None:
    parts = dict(Net().eval().named_children())
    backbone = nn.Sequential(parts["stem"], *parts["blocks"], *parts["head"])
    net = dggraph.convert(backbone, X).eval()
    assert len(net) == len(backbone)
    assert bool(net)
    assert [type(layer) for layer in net] == [type(layer) for layer in backbone]  # type: ignore[attr-defined]
    assert net[0] is net.get_submodule("0")
    assert net[-1] is net.get_submodule(f"{len(backbone) - 1}")
    with pytest.raises(BackboneOnlyError, match=r"net\[:-1\] would be a static Sequential"):
        net[:-1]  # type: ignore[index]
    with pytest.raises(BackboneOnlyError, match=r"net\[0\] cannot be deleted"):
        del net[0]  # type: ignore[attr-defined]
    with pytest.raises(IndexError, match="index 99 is out of range"):
        net[99]  # type: ignore[index]
    twin = copy.deepcopy(net)
    twin[-1] = nn.Linear(8, 2)  # type: ignore[index]
    assert twin(X).shape == (2, 2)
    assert net(X).shape == (2, 5)
    assert torch.equal(net(X), backbone(X))


def test_what_the_backbone_cannot_do_is_an_error_as_there() -> None:
    net = converted()
    with pytest.raises(TypeError, match="not subscriptable"):
        net[0]  # type: ignore[index]
    with pytest.raises(TypeError, match="no len"):
        len(net)  # type: ignore[arg-type]
