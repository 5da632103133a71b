"""What plain fx tracing loses comes along: custom backward passes, contexts, kept attributes,
buffers, output types, checkpointing.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dggraph
from dggraph.compiler.fingerprints import fingerprint
from dggraph.compiler.tracing import trace
from dggraph.errors import LoweringError
from dggraph.network.outputs import structure_of
from dggraph.ops.aggregation import plain_aggregation


class Round(torch.autograd.Function):
    """Straight-through: its own backward is not that of its forward, which has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Halves(torch.autograd.Function):
    """Two outputs, and a context set up apart."""

    @staticmethod
    def forward(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return x * scale, x - x * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, None]:
        return 3 * ctx.scale * first + second, None


round_ = Round.apply  # as many modules alias it


class Inner(Block):
    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv1(x)))


class Rounded(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(Round.apply(self.inner(x)))


class Aliased(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(round_(self.inner(x)))


class Halved(Inner):
    def forward(self, x: Tensor) -> Tensor:
        a, b = Halves.apply(self.inner(x), 0.25)
        return x + self.conv2(a + b)


class Masked(Inner):
    """A mask that must not learn, made by a decorated method."""

    @torch.no_grad()
    def mask(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv1(x).mean(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.inner(x) * self.mask(x))


class Switched(Inner):
    """Gradients turned off and on by function."""

    def forward(self, x: Tensor) -> Tensor:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        y = self.norm(self.conv1(x))
        torch.set_grad_enabled(before)
        return x + self.conv2(torch.relu(y))


class Precise(Inner):
    """Its middle runs in float32, whatever the caller casts to."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = torch.tanh(self.conv1(x.float()) * 40)
        return x + self.conv2(y)


class Cast(Inner):
    """Its middle runs in bfloat16 even where the caller casts nothing."""

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def middle(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.middle(x).float())


class Frozen(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.stem(x)
        return self.head(self.blocks(x))  # type: ignore[no-any-return]


class FrozenStages(Net):
    """Blocks that run without gradients have no use for routers."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(Block(), Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.early(self.stem(x))
        return self.head(self.blocks(x))  # type: ignore[no-any-return]


BLOCKS = [Rounded, Aliased, Halved, Masked, Switched, Precise, Cast]


def gradients(model: nn.Module, x: Tensor, names: Any) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: model.get_parameter(name).grad for name in names}


@pytest.mark.parametrize(
    "make", [*(lambda block=block: Net(block) for block in BLOCKS), Frozen, FrozenStages]
)
@pytest.mark.parametrize("mode", [True, False])
def test_gradients_are_those_of_the_backbone(make: Callable[[], nn.Module], mode: bool) -> None:
    """None where it has none, and equal elsewhere, in train mode and in eval mode."""
    torch.manual_seed(0)
    model = make().train(mode)
    net = dggraph.convert(model, X)
    names = [name for name, _ in model.named_parameters()]
    wanted, given = gradients(model, X, names), gradients(net, X, names)
    assert [name for name in names if wanted[name] is None] == [
        name for name in names if given[name] is None
    ]
    for name, grad in wanted.items():
        if grad is not None:
            torch.testing.assert_close(
                given[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max() + 1)
            )


def test_stages_without_gradients_are_not_routed() -> None:
    net = dggraph.convert(FrozenStages(), X)
    assert [stage.name for stage in net.report.stages] == ["blocks"]


@pytest.mark.parametrize("block", [Precise, Cast])
def test_regions_that_cast_for_themselves_do_so_under_autocast(block: type[nn.Module]) -> None:
    """To the bit; without the region `tanh(40 x)` in bfloat16 is far away."""
    torch.manual_seed(0)
    model = Net(block).eval()
    net = dggraph.convert(model, X).eval()
    with torch.no_grad():
        for executor in ("dense", "sparse"):
            net.executor = executor
            assert torch.equal(net(X), model(X))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(net(X), model(X))


def test_an_error_inside_a_region_leaves_gradients_on() -> None:
    net = dggraph.convert(Frozen(), X)
    net.stem.weight.data = net.stem.weight.data[:, :2]
    with pytest.raises(RuntimeError, match="to have 2 channels, but got 3"):
        net(X)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_tracing_leaves_torch_as_it_was() -> None:
    apply, alias, written = (
        vars(torch.autograd.Function)["apply"],
        round_,
        vars(nn.Module)["__setattr__"],
    )
    with torch.no_grad():
        dggraph.convert(Net(Halved), X)
        assert not torch.is_grad_enabled()
    assert vars(torch.autograd.Function)["apply"] is apply
    assert round_ is alias
    assert vars(nn.Module)["__setattr__"] is written


def in_another_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_what_another_thread_does_meanwhile_is_not_traced() -> None:
    """It enters autocast, leaves one that it had entered before, and counts."""
    counting, errors = nn.Linear(1, 1), list[BaseException]()
    counting.calls = 0
    earlier = torch.autocast("cpu", dtype=torch.bfloat16)
    in_another_thread(earlier.__enter__)

    def meanwhile() -> None:
        try:
            earlier.__exit__(None, None, None)
            torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
            counting.calls += 1
        except BaseException as error:
            errors.append(error)

    class Watched(Net):
        def features(self, x: Tensor) -> Tensor:
            in_another_thread(meanwhile)
            return super().features(x)

    model = Watched().eval()
    net = dggraph.convert(model, X)
    assert torch.equal(net(X), model(X))
    assert not errors
    assert not net.report.assumptions
    assert "autocast" not in net.lowered.code


class Keeping(Inner):
    """Keeps an auxiliary loss for the caller, as mixtures of experts do."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        self.aux = y.square().mean()
        return x + self.conv2(y)


class KeepingAtTheTop(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = {"features": self.blocks(self.stem(x))}
        return self.head(self.seen["features"])  # type: ignore[no-any-return]


def test_what_forward_keeps_on_a_module_is_there_after_each_pass() -> None:
    torch.manual_seed(0)
    model = Net(Keeping).eval()
    net = dggraph.convert(model, X).eval()
    assert not hasattr(net.blocks[0], "aux"), "nothing is left of the checks"
    with torch.no_grad():
        model(X), net(X)
    assert all(torch.equal(a.aux, b.aux) for a, b in zip(net.blocks, model.blocks, strict=True))
    net(X)
    assert sum(block.aux for block in net.blocks).requires_grad
    assert "aux" not in "".join(net.state_dict())
    assert "outlasts a forward pass" in net.report.stages[0].dense_because


def test_what_the_backbone_keeps_on_itself() -> None:
    model = KeepingAtTheTop().eval()
    net = dggraph.convert(model, X).eval()
    with torch.no_grad():
        model(X), net(X)
    assert torch.equal(net.seen["features"], model.seen["features"])
    copy.deepcopy(net)


def test_kept_values_are_no_part_of_a_fingerprint() -> None:
    """Archives of such networks, written before they were kept, still load."""

    class Plain(Keeping):
        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)
            y.square().mean()
            return x + self.conv2(y)

    assert fingerprint(trace(Net(Keeping), example=X).graph) == fingerprint(
        trace(Net(Plain), example=X).graph
    )


class Counting(Net):
    """A running mean and a counter, updated in place outside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.steps.add_(1)
        self.mean.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
        return self.head(self.blocks(x))  # type: ignore[no-any-return]


class Replacing(Counting):
    """The same, by assignment."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.steps = self.steps + x.shape[0]
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return self.head(self.blocks(x))  # type: ignore[no-any-return]


class CountingBlock(Inner):
    """A queue inside a block, written by index."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.queue[1:3] = x.detach().mean((0, 2, 3))
        return x + self.conv2(self.inner(x)) + self.queue.sum() * 0


@pytest.mark.parametrize("make", [Counting, Replacing, lambda: Net(CountingBlock)])
@pytest.mark.parametrize("executor", ["dense", "sparse"])
def test_buffers_that_forward_updates(make: Callable[[], nn.Module], executor: str) -> None:
    """As in the backbone before the first pass, and after every pass."""
    torch.manual_seed(0)
    model = make().eval()
    net = dggraph.convert(model, X).eval()
    net.executor = executor
    for _ in range(3):
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(net.get_buffer(name), buffer, rtol=1e-6, atol=1e-7)
        with torch.no_grad():
            model(X), net(X)


class ByNumpy(nn.Module):
    """Runs with numbers alone; shapes do not tell what it returns."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy())


class Configured(Net):
    """Its class sets an attribute before `__init__`, as huggingface_hub's mixin does."""

    def __new__(cls, *_: Any, **__: Any) -> "Configured":
        instance = super().__new__(cls)
        instance.hub_config = {"classes": 5}
        return instance

    def __init__(self) -> None:
        super().__init__()
        self.by_numpy = ByNumpy()

    def forward(self, x: Tensor) -> Tensor:
        y = self.by_numpy(x)
        return super().forward(y if y.shape[1] == 3 else y[:, :3])


@pytest.mark.cpu
def test_attributes_that_a_class_sets_before_its_init() -> None:
    """A copy of the model answers what shapes do not."""
    model = Configured().eval()
    net = dggraph.convert(model, X)
    assert torch.equal(net(X), model(X))
    assert net.hub_config == {"classes": 5}


def test_statements_without_a_reader_are_run_by_the_sparse_executor() -> None:
    class Zeroed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x[:, 0] = 0
            x = self.blocks(x)
            x[:, 1].clamp_(max=0.1)
            return self.head(x)  # type: ignore[no-any-return]

    model = Zeroed().eval()
    net = dggraph.convert(model, X).eval()
    net.executor = "sparse"
    with torch.no_grad():
        assert torch.equal(net(X), model(X))


@dataclass
class Result:
    logits: Tensor
    extra: Any = None


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """Dataclass and mapping in one, as those of transformers are."""

    logits: Tensor | None = None
    hidden: Any = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "model output": lambda y, z: ModelOutput(logits=y),
    "model output, nested": lambda y, z: ModelOutput(logits=y, hidden=(z, OrderedDict(z=z))),
    "ordered": lambda y, z: OrderedDict(out=y, aux=OrderedDict(z=z)),
    "dataclass of a mapping": lambda y, z: Result(y, OrderedDict(z=z)),
    "pair": lambda y, z: Pair(y, z),
    "list of pairs": lambda y, z: [Pair(y, z), {"n": 3, "none": None}],
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_outputs_have_the_backbones_types(name: str) -> None:
    """Under every executor, with and without gradients, and as fx returns them."""

    class Returning(Net):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            features = self.features(x)
            return STRUCTURES[name](self.head(features), features)

    model = Returning().eval()
    net = dggraph.convert(model, X).eval()
    wanted = structure_of(model(X))
    for executor in ("dense", "sparse"):
        net.executor = executor
        for is_on in (True, False):
            with torch.set_grad_enabled(is_on):
                assert structure_of(net(X)) == wanted
    assert structure_of(net.lowered(X)[0]) == wanted
    assert structure_of(copy.deepcopy(net)(X)) == wanted


def test_a_type_that_cannot_be_made_again_is_refused() -> None:
    class Odd(dict):  # type: ignore[type-arg]
        def __init__(self, parts: Any, mark: str = "made by fx") -> None:
            super().__init__(parts)
            self.mark = mark

    class Other(OrderedDict):  # type: ignore[type-arg]
        def __new__(cls, *args: Any) -> Any:
            return dict(*args) if len(args) == 1 else super().__new__(cls)

    class Returning(Net):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            other = Other()
            other["y"] = super().forward(x)
            return other

    with pytest.raises(LoweringError, match=r"returns Other, and the lowered network dict"):
        dggraph.convert(Returning(), X)


@pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad=True"
)  # torch's own, where the backbone runs without gradients
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_is_noted(use_reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=use_reentrant)
            return self.head(x)  # type: ignore[no-any-return]

    net = dggraph.convert(Checkpointed(), X)
    assert net.report.checkpointed == ("",)
    assert net.report.num_blocks == 3
    flagged = Net()
    flagged.blocks.grad_checkpointing = True
    assert dggraph.convert(flagged, X).report.checkpointed == ("blocks",)
    assert dggraph.convert(Net(), X).report.checkpointed == ()


class PoolBranch(nn.Module):
    """x + g(pool(x)): the branch has one pixel and only broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x.mean((2, 3), keepdim=True))))


@pytest.mark.parametrize("router", ["node", "stage"])
def test_branches_that_broadcast_stay_in_their_blocks(router: str) -> None:
    class Dense(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.features(x)

    from reference import randomise_routers

    net = dggraph.convert(Dense(PoolBranch), X, router=router).eval()
    assert [stage.residual for stage in net.report.stages] == ["keep"]
    randomise_routers(net, 3)
    with torch.no_grad(), plain_aggregation():
        net.executor = "dense"
        wanted = net(X)
    assert wanted.shape == (2, 8, 8, 8)
    for executor in ("dense", "sparse"):
        net.executor = executor
        with torch.no_grad():
            torch.testing.assert_close(net(X), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.train()(X), wanted, rtol=1e-4, atol=1e-5)
