"""The self-checks: whatever a backbone returns is compared, nothing passes that was not proved, and
starts are what `init` says.
"""

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from small import Net, X
from torch import Tensor, nn

import dggraph
from dggraph.compiler.profiling import unchanged
from dggraph.errors import InputError, LoweringError
from dggraph.network import skipping_checks, training_checks
from dggraph.network.outputs import join_outputs, tensors_in
from dggraph.ops.gating import GATES
from dggraph.ops.routing import ROUTERS

Pair = namedtuple("Pair", "logits features")


@dataclass
class Result:
    logits: Tensor
    features: Any


def returning(make: Any) -> nn.Module:
    class Returning(Net):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            features = self.features(x)
            return make(self.head(features), features)

    return Returning()


STRUCTURES = {
    "tuple": lambda y, z: (y, z),
    "list": lambda y, z: [y, z],
    "dict": lambda y, z: {"y": y, "inner": [z, (z,)], "loss": None, "count": 3},
    "namedtuple": Pair,
    "dataclass": Result,
    "nested": lambda y, z: {"a": Result(y, {"z": z})},
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_outputs_of_any_structure(name: str, tmp_path: Any) -> None:
    """Compared, recorded one by one and joined again, and kept by an archive."""
    model = returning(STRUCTURES[name]).eval()
    net = dggraph.convert(model, X)
    expected = tensors_in(model(X))
    joined = dggraph.record(net, X).output
    assert type(joined) is type(model(X))
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, tensors_in(joined), strict=True)
    )
    dggraph.save(net, tmp_path / "a")
    assert dggraph.load(tmp_path / "a", model=model).report == net.report


class Opaque:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda y, z: Result(y + torch.rand(1), z), LoweringError, "two outputs for one input"),
        (lambda y, z: y * float("nan"), LoweringError, "not finite"),
        (lambda y, z: {"y": y, "z": z / 0}, LoweringError, "not finite"),
        (lambda y, z: None, InputError, "no tensor was found"),
        (lambda y, z: (), InputError, "no tensor was found"),
        (lambda y, z: {"count": y.shape[0]}, InputError, "no tensor was found"),
    ],
)
def test_what_proves_nothing_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dggraph.convert(returning(make), X)


def test_unknown_structures_are_not_joined_silently() -> None:
    with pytest.raises(InputError, match="returns Opaque"):
        join_outputs([Opaque(X), Opaque(X)])


def test_hooks_that_change_a_value_are_named() -> None:
    model = Net().eval()
    model.blocks[0].register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    with pytest.raises(LoweringError, match=r"Hooks are not converted \(on blocks\.0\)"):
        dggraph.convert(model, X)


class Wide(nn.Module):
    def __init__(self, channels: int, edges: int, axis: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, edges + 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean((2, 3)))  # type: ignore[no-any-return]


class Random(nn.Module):
    def __init__(self, channels: int, edges: int, axis: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, edges)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def registries() -> Iterator[None]:
    saved = [(registry, dict(registry)) for registry in (ROUTERS, GATES)]
    yield
    for registry, before in saved:
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["node", "stage"])
def test_routers_are_checked(registries: None, scope: Any) -> None:
    dggraph.register_router("wide", Wide, scope=scope)
    dggraph.register_router("random", Random, scope=scope)
    with pytest.raises(InputError, match=r"router 'wide' gives \(3, \d+\) in stage 'blocks'"):
        dggraph.convert(Net(), X, router="wide")
    with pytest.raises(
        InputError, match="router 'random' with gate 'anchored' does not start as the backbone"
    ):
        dggraph.convert(Net(), X, router="random")
    assert dggraph.convert(Net(), X, router="random", init="scratch").report.max_difference == 0


def test_starts() -> None:
    with pytest.raises(InputError, match="gate 'sigmoid' does not start as the backbone"):
        dggraph.convert(Net(), X, gate="sigmoid")
    with pytest.raises(InputError, match=r"threshold 0\.75 closes every edge"):
        dggraph.convert(Net(), X, init="scratch", threshold=0.75)
    assert dggraph.convert(Net(), X, init="scratch", threshold=0.7).report.num_edges == 10


def test_the_threshold_keeps_its_digits() -> None:
    model = Net().bfloat16().eval()
    net = dggraph.convert(model, X.bfloat16(), threshold=0.999)
    assert net.lowered.dg_blocks.threshold.dtype == torch.float32
    assert torch.equal(net(X.bfloat16()), model(X.bfloat16()))


class KeepsInEvalMode(Net):
    """Computes something once for eval mode, as LeViT does with its biases, and appends a hook to
    itself at its first call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(8, 1, 1))
        self.kept: dict[str, Tensor] = {}
        self.is_hooked = False

    def train(self, mode: bool = True) -> "KeepsInEvalMode":
        super().train(mode)
        if mode:
            self.kept = {}
        return self

    def features(self, x: Tensor) -> Tensor:
        if not self.is_hooked:
            self.is_hooked = True
            self.stem.register_forward_hook(_doubled)
        if self.training:
            return super().features(x) * (2 * self.bias)
        if "bias" not in self.kept:
            self.kept["bias"] = 2 * self.bias
        return super().features(x) * self.kept["bias"]


def _doubled(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def test_what_a_backbone_had_kept_without_gradient_is_no_difference() -> None:
    model = KeepsInEvalMode().eval()
    with torch.no_grad():
        model(X)
    assert not model.kept["bias"].requires_grad
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), model(X))


def test_hooks_that_a_first_call_registers_are_there_once() -> None:
    """`unchanged` puts back what modules keep in dicts of any kind, lists and sets, the very same
    objects.
    """
    model = KeepsInEvalMode().eval()
    hooks, seen = model.stem._forward_hooks, model.__dict__.setdefault("seen", [1])
    with unchanged(model), torch.no_grad():
        once = model(X)
        seen.append(2)
        assert len(hooks) == 1
    assert not hooks
    assert not model.is_hooked
    assert seen == [1]
    assert model.stem._forward_hooks is hooks
    with torch.no_grad():
        assert torch.equal(model(X), once)


def test_rounding_of_a_deep_network_is_no_mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float32 rounds beyond the tolerance, float64 decides: nothing is refused, no stage is
    made dense.
    """
    monkeypatch.setitem(skipping_checks.TOLERANCE, torch.float32, 0.0)
    net = dggraph.convert(Net(depth=4), X)
    assert [stage.dense_because for stage in net.report.stages] == [""]


class Seen(nn.Module):
    """Notes the sizes of the batches that reach it with values."""

    sizes: ClassVar[set[tuple[int, int]]] = set()

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            self.sizes.add((x.shape[0], x.shape[-1]))
        return x


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(1, 1, 128, 128)


@pytest.mark.parametrize(
    ("part", "sizes"),
    [
        (nn.Identity(), {(3, 64), (1, 64), (1, 128)}),
        (nn.AvgPool2d(80), {(3, 96), (1, 96), (1, 128)}),
        (OneSize(), {(3, 128), (1, 128)}),
    ],
)
def test_batches_of_small_images_and_one_of_full_size(
    part: nn.Module, sizes: set[tuple[int, int]]
) -> None:
    Seen.sizes.clear()
    model = Net().eval()
    model.stem = nn.Sequential(Seen(), part, model.stem)
    dggraph.convert(model, torch.rand(1, 3, 128, 128), leaves=[Seen])
    failed = {(batch, side) for batch in (2, 3) for side in (64, 96)} - sizes
    assert Seen.sizes - failed == sizes


def test_a_head_whose_hook_returns_a_structure() -> None:
    model = Net().eval()
    model.head[2].register_forward_hook(lambda _module, _args, y: {"y": y})
    net = dggraph.convert(model, X)
    assert torch.equal(net(X)["y"], model(X)["y"])


def test_gradients_that_are_not_finite_prove_nothing() -> None:
    gradients = {
        "a": torch.ones(2),
        "b": None,
        "c": torch.zeros(0),
        "d": torch.ones(1, dtype=torch.cfloat),
    }
    assert training_checks._are_finite(gradients)
    for value in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.cfloat):
            wrong = torch.ones(3, dtype=dtype)
            wrong[1] = value
            assert not training_checks._are_finite(gradients | {"e": wrong})
