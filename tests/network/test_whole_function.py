"""The converted network is its backbone: what a forward writes, counts, refers to, looks at or
returns is neither lost nor another's.
"""

import copy
import warnings
from collections import UserDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reference import randomise_routers
from small import Block, Net, X
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError, StructureError
from dggraph.network.outputs import structure_of, tensors_in

pytestmark = pytest.mark.cpu


class Inner(Block):
    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv1(x)))


@torch.library.custom_op("dggraph_tests::count", mutates_args={"total"})  # type: ignore[untyped-decorator]
def count(x: Tensor, total: Tensor) -> None:
    total.add_(x.mean((0, 2, 3)))


def _scripted(x: Tensor) -> Tensor:
    if x.size(2) > 4:
        x = x * 0.5
    return x


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # deprecated, and what many models still call
    scripted = torch.jit.script(_scripted)


# Blocks whose last line writes into what they hand on.


class AddedInPlace(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.inner(x))
        y.add_(x)
        return y  # type: ignore[no-any-return]


class SetAfterTheAdd(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = x + self.conv2(self.inner(x))
        y[:, 0] = 0
        return y


class ViewAfterTheAdd(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = x + self.conv2(self.inner(x))
        y.view(y.size(0), 8, -1)[:, :, ::2].mul_(0.5)
        return y


class SetInACopy(Inner):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, ::2] = y[:, ::2] + self.conv2(self.inner(x))[:, ::2]
        return y


# Blocks that ask in ways that plain tracing answers wrongly, or not at all.


class Halving(Inner):
    """As many parts as the batch has images, at most."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([self.conv2(self.inner(part)) for part in x.chunk(2, 0)], 0)


class Lengths(Inner):
    def forward(self, x: Tensor) -> Tensor:
        shift = self.conv1.weight.mean((1, 2, 3))[None, :, None, None].expand(len(x), -1, 1, 1)
        return x + self.conv2(self.inner(x + shift)) / float(np.prod(x.shape[2:]))


class Nested(Inner):
    """Nested tensors, as detectors hand them around, have `.tensors`."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.tensors if hasattr(x, "tensors") else getattr(x, "decomposed", x)
        return x + self.conv2(self.inner(y if y.is_contiguous() else y.contiguous()))


class Scripted(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(scripted(self.inner(x)))


class Messages(Inner):
    def forward(self, x: Tensor) -> Tensor:
        text = f"{x.shape[0]:03d} images of mean {x.mean():.3f}"
        return x + self.conv2(self.inner(x)) * min(1, len(text))


class Referring(Inner):
    """A function in a dict on the module refers to the module."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = {"last": lambda y: self.conv2(y), "first": self.inner}

    def forward(self, x: Tensor) -> Tensor:
        return x + self.steps["last"](self.steps["first"](x))  # type: ignore[no-any-return]


class Closed(Block):
    """A forward set on the instance, bound by its default argument."""

    def __init__(self) -> None:
        super().__init__()

        def forward(x: Tensor, block: Any = self) -> Tensor:
            return x + block.conv2(torch.relu(block.norm(block.conv1(x)))) * 0.5

        self.forward = forward  # type: ignore[method-assign, assignment]


BLOCKS = [
    AddedInPlace,
    SetAfterTheAdd,
    ViewAfterTheAdd,
    SetInACopy,
    Halving,
    Lengths,
    Nested,
    Scripted,
    Messages,
    Referring,
    Closed,
]
IMAGES = X.repeat(2, 1, 1, 1) * torch.tensor([0.2, 1.0, 4.0, -3.0]).view(-1, 1, 1, 1)


@pytest.mark.parametrize("block", BLOCKS)
def test_values_gradients_and_skipping(block: Callable[[], nn.Module]) -> None:
    backbone = Net(block).eval()
    net = dggraph.convert(backbone, X[:1])
    for one in (backbone, net):
        one(IMAGES).square().sum().backward()
    for name, parameter in backbone.named_parameters():
        scale = float(parameter.grad.abs().max())  # type: ignore[union-attr]
        assert torch.allclose(
            net.get_parameter(name).grad, parameter.grad, rtol=0, atol=1e-3 * scale
        ), name  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(net(IMAGES), backbone(IMAGES))
        for seed in range(4):
            randomise_routers(net, seed)
            net.executor = "dense"
            dense = net(IMAGES)
            net.executor = "sparse"
            assert torch.allclose(net(IMAGES), dense, atol=1e-4)


class Flipped(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.inner(x.flip(0)))


class FromTheFirst(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.inner(x - x[:1]))


class FromTheLast(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.inner(x - x[-1:]))


@pytest.mark.parametrize("block", [Flipped, FromTheFirst, FromTheLast])
@pytest.mark.parametrize("depth", [2, 3])
def test_blocks_that_look_at_other_images_run_on_whole_batches(
    block: Callable[[], nn.Module], depth: int
) -> None:
    net = dggraph.convert(Net(block, depth=depth), X[:1])
    assert net.report.stages[0].dense_because


# What a pass leaves behind.


class Leaving(Net):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.maps, self.named, self.calls = how, list[Tensor](), dict[str, Tensor](), 0
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.how == "list":
            self.maps.clear()
            self.maps.append(y)
        elif self.how == "dict":
            self.named["y"] = y
        elif self.how == "counter":
            self.steps += 1
        elif self.how == "operator":
            count(y[..., None, None].detach(), self.mean)
        else:
            self.mean.data = self.mean * 0.9 + y.mean(0) * 0.1
        return y


@pytest.mark.parametrize("how", ["list", "dict", "counter", "operator", "data"])
@pytest.mark.parametrize("executor", ["dense", "sparse"])
def test_what_forward_leaves_behind_is_there(how: str, executor: Any) -> None:
    backbone = Leaving(how).eval()
    net = dggraph.convert(backbone, X[:1])
    net.executor = executor
    with torch.no_grad():
        for _ in range(2):
            backbone(X)
            net(X)
    for name, buffer in backbone.named_buffers():
        assert torch.allclose(net.get_buffer(name), buffer), name
    assert structure_of((net.maps, net.named)) == structure_of((backbone.maps, backbone.named))
    kept = tensors_in((net.maps, net.named))
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept, tensors_in((backbone.maps, backbone.named)), strict=True)
    )


def test_what_forward_counts_is_reported() -> None:
    class Warming(Net):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    (counted,) = dggraph.convert(Warming(), X[:1]).report.assumptions
    assert counted.answer == "calls = 0"
    assert "self.calls += 1" in counted.place
    assert not counted.is_checked


# What it returns.


class AttributeDict(dict[str, Any]):
    __getattr__ = dict.__getitem__


class Features(list[Any]):
    pass


class Kind(Enum):
    LOGITS = 1


@dataclass
class Derived:
    logits: Tensor
    probabilities: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.probabilities = self.logits.softmax(1)


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "attributes": lambda y: AttributeDict(y=y, more=[AttributeDict(y=2 * y)]),
    "list": lambda y: Features([y, None]),
    "default": lambda y: defaultdict(list, y=[y]),
    "enum": lambda y: {Kind.LOGITS: y},
    "user": lambda y: UserDict(y=y),
    "namespace": lambda y: SimpleNamespace(y=y, z=(y, 3)),
    "derived": Derived,
    "mask": lambda y: {"y": y, "mask": y > 0, "best": y.argmax(1)},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_come_back_as_what_they_were(kind: str) -> None:
    class Structured(Net):
        def forward(self, x: Tensor) -> Any:
            return OUTPUTS[kind](super().forward(x))

    backbone = Structured().eval()
    net = dggraph.convert(backbone, X[:1])
    with torch.no_grad():
        expected, given = backbone(X), net(X)
    assert structure_of(given) == structure_of(expected)
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_in(given), tensors_in(expected), strict=True)
    )


def test_a_class_that_cannot_be_rebuilt_is_named() -> None:
    class Foreign(Net):
        def forward(self, x: Tensor) -> Any:
            return iter([super().forward(x)])

    with pytest.raises(dggraph.errors.TraceError, match=r"iterator.*a value that is not a tensor"):
        dggraph.convert(Foreign(), X[:1])


# What is done to it.


def test_a_first_layer_of_other_channels_runs() -> None:
    backbone = Net().eval()
    net = dggraph.convert(backbone, X[:1])
    with pytest.raises(InputError, match=r"\(B, 3, H, W\), got \(2, 1, 16, 16\)"):
        net(X[:, :1])
    net.stem = backbone.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
    with torch.no_grad():
        assert torch.equal(net(X[:, :1]), backbone(X[:, :1]))


def test_norms_replaced_by_others_run() -> None:
    backbone = Net().eval()
    net = dggraph.convert(backbone, X[:1])
    for block, twin in zip(backbone.blocks, net.blocks, strict=True):
        block.norm = nn.GroupNorm(2, 8)
        twin.norm = copy.deepcopy(block.norm)
    with torch.no_grad():
        assert torch.allclose(net(X), backbone(X), atol=1e-6)


def test_a_module_appended_to_a_container_is_refused() -> None:
    net = dggraph.convert(Net(), X[:1])
    net.head.append(nn.Linear(5, 2))
    with pytest.raises(StructureError, match=r"'head' has an additional module, '3'"):
        net(X)


@pytest.mark.parametrize("name", ["torch", "getattr"])
def test_arguments_may_be_called_as_the_generated_code_calls_other_things(name: str) -> None:
    scope: dict[str, Any] = {"Net": Net}
    exec(f"class Odd(Net):\n    def forward(self, {name}): return Net.forward(self, {name})", scope)
    backbone = scope["Odd"]().eval()
    with torch.no_grad():
        assert torch.equal(dggraph.convert(backbone, X[:1])(X), backbone(X))


def test_observers_see_nothing_of_a_conversion() -> None:
    class Observed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(0))

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            with torch.no_grad():
                self.seen.resize_(5).copy_(y.mean(0))
            return y

    backbone = Observed()
    dggraph.convert(backbone, X[:1], leaves=())
    assert backbone.seen.numel() == 0


@pytest.mark.parametrize(
    ("model", "example", "said"),
    [
        ({"weight": X}, X, "a mapping .dict.. A state dict holds weights only"),
        (Net, X, "the class Net. Call it"),
        (Net(), X.to("meta"), "example_input is on the meta device"),
        ("model.pth", X, "--checkpoint"),
        ("vit_tiny_patch16_224", X, "write timm:vit_tiny_patch16_224"),
    ],
)
def test_what_is_no_model_is_told_so(model: Any, example: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        dggraph.convert(model, example)


def test_a_backbone_in_a_wrapper_of_data_parallelism_is_taken_out() -> None:
    net = dggraph.convert(nn.DataParallel(Net()), X[:1])
    assert "stem.weight" in net.state_dict()


def test_what_runs_and_was_traced_another_way_is_no_matter_of_the_input() -> None:
    class Exact(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if type(x) is Tensor else x[0])

    with pytest.raises(InputError, match="but not as it was traced"):
        dggraph.convert(Exact(), X[:1])


def test_blocks_that_round_small_maps_up_convert_at_a_size_that_they_keep() -> None:
    """MobileViT: maps of odd sides become even ones, so that small images would change their size
    inside a stage.
    """

    class Rounding(Inner):
        def forward(self, x: Tensor) -> Tensor:
            height = x.shape[2] + x.shape[2] % 2
            return torch.relu(
                self.conv2(self.inner(nn.functional.interpolate(x, size=(height, height))))
            )

    backbone = Net(Rounding).eval()
    backbone.stem = nn.Conv2d(3, 8, 32, stride=32)
    net = dggraph.convert(backbone, torch.zeros(1, 3, 128, 128))
    x = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(net(x), backbone(x))
