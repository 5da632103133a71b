"""Random networks that do what traced networks seldom do: each is its backbone in values, types,
buffers and gradients, and skips right.

One run of the test covers at least a fixed number of each oddity: branches that broadcast, buffers
updated in place, tensors of the batch's size made outside the blocks, batch statistics in eval
mode, blocks that mix the images of a batch, custom autograd functions, regions without gradients or
with a cast of their own, layers with odd names, and outputs in structures.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import randomise, randomise_routers
from torch import Tensor, nn

import dggraph
from dggraph.network.outputs import structure_of, tensors_in
from dggraph.ops.aggregation import plain_aggregation

CHANNELS, SIDE = 6, 6
NAMES = ("head", "output", "self", "input", "training_", "class", "graph", "code", "lambda")


class Clip(torch.autograd.Function):
    """A straight-through clip: backward is not that of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-0.5, 0.5)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 0.7 * grad


class Block(nn.Module):
    """x + F(x), with a slot between the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.Conv2d(CHANNELS, CHANNELS, 1),
        )

    def between(self, y: Tensor) -> Tensor:
        return torch.tanh(y)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        y = self.between(self.first(x if shift is None else x + shift))
        return x + self.second(y)


class Broadcasting(Block):
    def between(self, y: Tensor) -> Tensor:
        return torch.tanh(y).mean((2, 3), keepdim=True)


class Counting(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CHANNELS))

    def between(self, y: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)), alpha=0.1)
        return torch.tanh(y)


class BatchStatistics(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS, track_running_stats=False)

    def between(self, y: Tensor) -> Tensor:
        return torch.tanh(self.norm(y))


class Mixing(Block):
    """Images of a batch see each other, in no way that a graph shows."""

    def between(self, y: Tensor) -> Tensor:
        return torch.tanh(y - y.mean(0, keepdim=True))


class Custom(Block):
    def between(self, y: Tensor) -> Tensor:
        return Clip.apply(y)  # type: ignore[no-any-return]


class Masked(Block):
    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            mask = torch.sigmoid(self.second(y))
        return torch.tanh(y) * mask


class Cast(Block):
    def between(self, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.second(y.float())
        return torch.tanh(y) + z.to(y.dtype)


class Result(NamedTuple):
    logits: Tensor
    features: Any


@dataclass
class Named:
    logits: Tensor
    extra: Any = None


STRUCTURES: dict[str, Any] = {
    "tensor": lambda y, z: y,
    "named tuple": Result,
    "dataclass": lambda y, z: Named(y, [z]),
    "ordered": lambda y, z: OrderedDict(y=y, inner=OrderedDict(z=z)),
    "nested": lambda y, z: {"a": (y, None), "b": [OrderedDict(z=z), 3]},
}
BLOCKS = {
    "plain": Block, "broadcast": Broadcasting, "buffer": Counting, "statistics": BatchStatistics,
    "mixing": Mixing, "custom": Custom,
    "no_grad": Masked, "autocast": Cast,
}  # fmt: skip


class Net(nn.Module):
    def __init__(
        self, blocks: list[str], structure: str, name: str, stem: str, *, shifts: bool
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.body = nn.ModuleList(BLOCKS[kind]() for kind in blocks)
        self.shift = nn.Parameter(torch.zeros(CHANNELS, 1, 1)) if shifts else None
        self.add_module(name, nn.Linear(CHANNELS, 5))
        self.structure, self.name, self.how = structure, name, stem

    def forward(self, x: Tensor) -> Any:
        if self.how == "no_grad":
            with torch.no_grad():
                x = self.stem(x)
        else:
            x = self.stem(x)
        shift = None if self.shift is None else self.shift.unsqueeze(0).repeat(x.shape[0], 1, 1, 1)
        for block in self.body:
            x = block(x, shift)
        return STRUCTURES[self.structure](self.get_submodule(self.name)(x.mean((2, 3))), x)


DRAWN = {
    "kind": st.sampled_from(sorted(BLOCKS)),
    "depth": st.integers(2, 4),
    "structure": st.sampled_from(sorted(STRUCTURES)),
    "name": st.sampled_from(NAMES),
    "stem": st.sampled_from(["plain", "no_grad"]),
    "shifts": st.booleans(),
    "router": st.sampled_from(["node", "stage"]),
    "seed": st.integers(0, 10_000),
}
seen: Counter[str] = Counter()


def buffers_after(model: nn.Module, x: Tensor) -> tuple[Any, dict[str, Tensor]]:
    with torch.no_grad():
        output = model(x)
    return output, {name: buffer.clone() for name, buffer in model.named_buffers()}


def check_odd_network(
    kind: str,
    depth: int,
    structure: str,
    name: str,
    stem: str,
    shifts: bool,
    router: str,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float32 if kind == "autocast" else torch.float64
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    model = (
        randomise(Net([kind] * depth, structure, name, stem, shifts=shifts), seed).to(dtype).eval()
    )
    net = dggraph.convert(model, torch.zeros(1, 3, SIDE, SIDE, dtype=dtype), router=router).eval()
    x = torch.randn(4, 3, SIDE, SIDE, dtype=dtype, generator=generator)
    wanted, buffers = buffers_after(model, x)
    for executor in ("dense", "sparse"):
        net.load_state_dict(before(model, buffers), strict=False)
        net.executor = executor
        given_, changed = buffers_after(net, x)
        assert structure_of(given_) == structure_of(wanted)
        assert all(
            torch.equal(a, b) for a, b in zip(tensors_in(given_), tensors_in(wanted), strict=True)
        )
        assert all(
            torch.allclose(changed[key], value, rtol=1e-6, atol=1e-9)
            for key, value in buffers.items()
        )
    for one in (model, net):
        sum(tensor.square().sum() for tensor in tensors_in(one(x))).backward()
    for key, parameter in model.named_parameters():
        twin = net.get_parameter(key).grad
        assert (parameter.grad is None) == (twin is None), key
        if twin is not None:
            scale = float(parameter.grad.abs().max()) + 1e-9
            assert float((twin - parameter.grad).abs().max()) <= 10 * tolerance * scale, key
    randomise_routers(net, seed)
    outputs: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        state = {key: value.clone() for key, value in net.state_dict().items()}
        for executor in ("dense", "sparse", "plain"):
            net.load_state_dict(state)
            net.executor = "sparse" if executor == "sparse" else "dense"
            if executor == "plain":
                with plain_aggregation():
                    outputs[executor] = tensors_in(net(x))
            else:
                output, gates = net(x, return_gates=True)
                outputs[executor] = tensors_in(output)
    if kind == "autocast":  # sums in another order may round to another bfloat16
        tolerance = 2**-7
    margin = min(float((raw - 0.5).abs().min()) for raw in gates.raw.values())
    if margin < 1e-4:
        seen["near tie"] += 1
        return
    for other in ("sparse", "plain"):
        for a, b in zip(outputs["dense"], outputs[other], strict=True):
            assert float((a - b).abs().max()) <= tolerance * float(a.abs().max()), other
    seen[kind] += 1
    seen[structure] += 1
    seen["odd name"] += name != "head"
    seen["frozen stem"] += stem == "no_grad"
    seen["outside tensor"] += shifts
    seen["some skipped"] += any(bool((weights == 0).any()) for weights in gates.weights.values())


def before(model: nn.Module, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as it was before a pass, which only buffers called `mean` remember."""
    return {
        key: torch.zeros_like(value) if key in buffers else value
        for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize(
    "count", [100, pytest.param(1000, marks=pytest.mark.attack)], ids=["some", "many"]
)
def test_odd_networks(count: int) -> None:
    seen.clear()
    how = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    how(given(**DRAWN)(check_odd_network))()
    assert all(seen[kind] >= count / 20 for kind in (*BLOCKS, *STRUCTURES)), seen
    assert (
        min(seen["odd name"], seen["frozen stem"], seen["outside tensor"], seen["some skipped"])
        >= 0.3 * count
    ), seen
    assert seen["near tie"] <= count / 10, seen
