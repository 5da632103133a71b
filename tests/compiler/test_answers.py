"""Questions that Python asks while tracing: answered as on real images, asked again on every batch,
refused where there is no answer.
"""

import functools
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn
from torch.nn import functional

import dggraph
from dggraph.errors import BranchError, InputError, NothingToRouteError, TraceError


class Asks(Net):
    """Asks one question before its blocks; the wrong branch gives another result or fails."""

    def __init__(self, question: Any) -> None:
        super().__init__()
        self.question = question

    def features(self, x: Tensor) -> Tensor:
        return super().features(x if self.question(self, x) else x.nonsense())


def same_parts(_self: Any, x: Tensor) -> bool:
    _, *others = x.split(1, dim=1)
    return (
        len(x.chunk(3, 1)) == 3
        and len(others) == 2
        and len(list(x.unbind(1))) == 3
        and isinstance(x.chunk(3, 1), tuple)
    )


def same_pattern(_self: Any, x: Tensor) -> bool:
    match x:
        case Tensor():
            return dispatched(x)
    return False


@functools.singledispatch
def dispatched(_value: Any) -> bool:
    return False


@dispatched.register
def _(_value: Tensor) -> bool:
    return True


STRUCTURE = {
    "is matched as a tensor": same_pattern,
    "is a tensor": lambda self, x: (
        isinstance(x, Tensor)
        and torch.is_tensor(x)
        and not isinstance(x, list | tuple | nn.Parameter)
    ),
    "rank": lambda self, x: x.ndim == 4 and x.dim() == 4 and len(x.shape) == 4 and x.ndim != 3,
    "floats": lambda self, x: (
        x.is_floating_point() and torch.is_floating_point(x) and not x.is_complex()
    ),
    "a size is a number": lambda self, x: (
        isinstance(x.shape[1], int) and isinstance(x.shape, torch.Size | tuple)
    ),
}
CHECKED = {
    "dtype": lambda self, x: (
        x.dtype == self.stem.weight.dtype and x.dtype in (torch.float16, torch.float32)
    ),
    "device": lambda self, x: (
        not x.is_cuda and x.device == self.stem.weight.device and x.device.type == "cpu"
    ),
    "sizes": lambda self, x: x.shape[-1] % 8 == 0 and x.size(2) >= 16 and x.shape[1] == 3,
    "a size in Python": lambda self, x: (
        len(range(x.shape[-1])) == 16 and int(x.shape[-1] * 0.5) == 8
    ),
    "parts": same_parts,
}


@pytest.mark.parametrize("name", [*STRUCTURE, *CHECKED])
def test_answers_are_those_of_real_images(name: str) -> None:
    model = Asks((STRUCTURE | CHECKED)[name]).eval()
    net = dggraph.convert(model, X).eval()
    for batch in (X, X[:1], torch.cat([X, X, X])):
        assert torch.equal(net(batch), model(batch))
    assert net.report.num_blocks == 3
    assert not net.report.opaque
    assert (
        [a for a in net.report.assumptions if a.is_checked]
        if name in CHECKED
        else not net.report.assumptions
    )


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # deprecated, and met in the field

    @torch.jit.script
    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class CallsC(Block):
    """A scripted function is not Python: it looks at the memory of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(swish(self.norm(self.conv1(x))))


class Casts(Block):
    """Meets the dtype of its weights, as adapters do; under autocast the answer is another."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(x)
        if inner.dtype != self.conv2.weight.dtype:
            inner = inner.to(self.conv2.weight.dtype)
        return x + self.conv2(torch.relu(inner))


def test_traced_values_are_no_tensors_to_compiled_functions() -> None:
    model = Net(CallsC).eval()
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), model(X))
    assert net.report.num_blocks == 3


@pytest.mark.parametrize("executor", ["dense", "sparse"])
def test_what_casts_to_its_weights_runs_under_autocast(executor: Any) -> None:
    model = Net(Casts).eval()
    net = dggraph.convert(model, X).eval()
    net.executor = executor
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(X), model(X))
    net.lowered.blocks[1].conv2.double()
    with pytest.raises(BranchError, match=r"conv2\.weight\.dtype"):
        net(X)


class Pads(Net):
    """Pads images whose sides are not multiples of 8, as Swin does."""

    def features(self, x: Tensor) -> Tensor:
        missing = (8 - x.shape[-1] % 8) % 8
        if missing > 0:
            x = functional.pad(x, (0, missing))
        return super().features(x)


@pytest.mark.parametrize("executor", ["dense", "sparse"])
def test_a_batch_that_would_go_another_way_is_refused(executor: Any) -> None:
    model = Pads().eval()
    net = dggraph.convert(model, X).eval()
    net.executor = executor
    wider, odd = functional.pad(X, (0, 8)), functional.pad(X, (0, 3))
    with torch.no_grad():
        assert torch.equal(net(wider), model(wider))
        with pytest.raises(
            BranchError, match=r"test_answers\.py:\d+ \(if missing > 0:\).*was False.*is True"
        ):
            net(odd)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_asked_again_goes_through_compilers_and_exporters() -> None:
    model = Pads().eval()
    net = dggraph.convert(model, X).eval()
    with torch.no_grad():
        expected = model(X)
        exported = torch.export.export(
            net, (X,), dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}}
        ).module()
        torch.testing.assert_close(exported(torch.cat([X, X])), torch.cat([expected, expected]))
        torch.testing.assert_close(torch.jit.trace(net, (X,))(X), expected)
        compiled = torch.compile(net, backend="eager", dynamic=True)
        torch.testing.assert_close(compiled(X), expected)
        with pytest.raises(BranchError, match=r"shape|size"):
            compiled(functional.pad(X, (0, 3)))
    torch._dynamo.reset()


def test_gradients_are_noted_and_not_checked() -> None:
    net = dggraph.convert(Asks(lambda self, x: not x.requires_grad), X)
    (assumption,) = net.report.assumptions
    assert not assumption.is_checked
    assert "requires_grad" in assumption.place
    net(X.clone().requires_grad_()).sum().backward()


class CountsImages(nn.Module):
    def __init__(self, num_channels: int = 8) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(), nn.Conv2d(8, num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return x
        return torch.stack([self.inner(image[None])[0] for image in x])


class LooksAtValues(nn.Module):
    def __init__(self, num_channels: int = 8) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(), nn.Conv2d(8, num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.mean() > -100 else x


@pytest.mark.parametrize(
    ("part", "why"), [(CountsImages, "number of images"), (LooksAtValues, "values of the images")]
)
def test_what_has_no_answer_is_kept_whole_with_line_and_reason(part: Any, why: str) -> None:
    model = Net()
    model.stem = nn.Sequential(model.stem, part())
    model.eval()
    net = dggraph.convert(model, X).eval()
    (opaque,) = net.report.opaque
    assert opaque.name == part.__name__
    assert opaque.module_path == "stem.1"
    assert why in opaque.reason
    assert "test_answers.py:" in opaque.place
    for batch in (X, X[:1]):
        assert torch.equal(net(batch), model(batch))
    with pytest.raises(
        NothingToRouteError, match=rf"{part.__name__} .*test_answers\.py:\d+.*{why}"
    ):
        dggraph.convert(Whole(part), X)
    with pytest.raises(TraceError, match=rf"test_answers\.py:\d+: .*{why}"):
        dggraph.convert(part(), X)


class Whole(nn.Module):
    """All of it is in one part."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part(4)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.part(x.repeat(1, 3, 1, 1)[:, :8])
        return features


def grid(x: Tensor) -> Tensor:
    """A helper with a branch on the image's size."""
    if x.shape[-1] > 8:
        return x * torch.arange(x.shape[-1], device=x.device)
    return x + 1


class UsesHelper(Net):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x) + torch.zeros(x.shape[0], 1, 1, 1, dtype=x.dtype)
        return self.blocks(grid(x))


def test_helpers_are_called_whole_and_follow_the_size() -> None:
    model = UsesHelper().eval()
    net = dggraph.convert(model, X).eval()
    assert [part.name for part in net.report.opaque] == ["grid"]
    for batch in (X, functional.pad(X, (4, 4, 4, 4))):
        assert torch.equal(net(batch), model(batch))


class ChecksByNumpy(Net):
    """As MONAI's SwinUNETR does."""

    def forward(self, x: Tensor) -> Tensor:
        rest = np.array(x.shape[2:]) % np.power(2, 2)
        if rest.any():
            raise ValueError(f"sides must be multiples of 4, not {tuple(x.shape[2:])}")
        return super().forward(x) * np.int64(3)


def test_numpy_may_look_at_sizes() -> None:
    model = ChecksByNumpy().eval()
    net = dggraph.convert(model, X)
    for x in (X, torch.rand(2, 3, 12, 20)):
        assert torch.equal(net(x), model(x))
    with pytest.raises(BranchError, match=r"if rest\.any"):
        net(torch.rand(1, 3, 12, 18))


class Splits(nn.Module):
    """C2f: a list of parts that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
            for _ in range(3)
        )
        self.out = nn.Conv2d(20, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(x.chunk(2, 1))
        parts.extend(inner(parts[-1]) for inner in self.inner)
        return self.out(torch.cat([*parts], 1))


def test_parts_are_iterated_by_their_number() -> None:
    model = Net(Splits, depth=1).eval()
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), model(X))
    assert not net.report.opaque
    assert net.report.num_blocks >= 3


class Mixes(nn.Module):
    """Reads named results, and a mapping that a whole module gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, x: Tensor) -> Tensor:
        largest = x.max(dim=1, keepdim=True).values + torch.topk(x, 2, dim=1).values.sum(
            1, keepdim=True
        )
        parts = torch.sort(x, dim=1)
        return self.inner(x + largest + parts.values + parts[0])


class GivesMapping(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"first": x, "second": x * 2} if x.mean() > -100 else {}


class ReadsMapping(Net):
    def __init__(self) -> None:
        super().__init__(Mixes)
        self.gives = GivesMapping()

    def features(self, x: Tensor) -> Tensor:
        parts = self.gives(x)
        assert "first" in parts
        assert list(parts) == list(parts.keys()) == ["first", "second"]
        assert len(parts) == 2
        return super().features(
            sum(parts.values()) + sum(part for name, part in parts.items() if name == "first")
        )


def test_named_parts_are_read() -> None:
    model = ReadsMapping().eval()
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), model(X))
    assert [part.name for part in net.report.opaque] == ["GivesMapping"]
    assert net.report.num_blocks == 3


def with_method(model: Net) -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)) * 2)

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def with_closure(model: Net) -> None:
    model.forward = lambda x: model.head(model.blocks(model.stem(x)) * 2)  # type: ignore[method-assign]


def with_partial(model: Net) -> None:
    def forward(scale: float, model: Net, x: Tensor) -> Tensor:
        return model.head(model.blocks(model.stem(x)) * scale)

    model.forward = functools.partial(forward, 2.0, model)  # type: ignore[method-assign]


def with_inner(model: Net) -> None:
    block = model.blocks[1]
    before = block.forward
    block.forward = lambda x: before(x) * 2


@pytest.mark.parametrize("change", [with_method, with_closure, with_partial, with_inner])
def test_a_forward_set_on_the_instance_is_the_forward(change: Any) -> None:
    model = Net().eval()
    plain = model(X)
    change(model)
    net = dggraph.convert(model.train(), X).eval()
    model.eval()
    assert torch.equal(net(X), model(X))
    assert not torch.equal(net(X), plain)
    assert net.report.num_blocks >= 2
    with torch.no_grad():
        model.stem.weight.zero_()
    assert not torch.equal(net(X), model(X))  # a copy: it does not call the original's modules


def test_compiled_parts_are_traced_through() -> None:
    model = Net().eval()
    expected = model(X)
    keys = set()
    for index in range(3):
        model.blocks[index] = torch.compile(model.blocks[index], backend="eager")
    keys = set(model.state_dict())
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), expected)
    assert net.report.num_blocks == 3
    assert keys <= set(net.lowered.state_dict())


class Slices(Net):
    def features(self, x: Tensor) -> Tensor:
        return nn.ReLU()(self.blocks[1:](self.blocks[:1](self.stem(x))))


def test_modules_made_in_forward_are_traced_through() -> None:
    model = Slices().eval()
    net = dggraph.convert(model, X).eval()
    assert torch.equal(net(X), model(X))
    assert net.report.num_blocks == 3
    assert not net.report.opaque


def test_einops_is_called_whole_or_traced() -> None:
    einops = pytest.importorskip(
        "einops", reason="its functions look at the types and sizes of what they get"
    )

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, t: Tensor) -> Tensor:
            return t + self.down(torch.relu(self.up(self.norm(t))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
            self.extra = nn.Parameter(torch.ones(1, 1, 8))
            self.blocks = nn.Sequential(*(Tokens() for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            tokens = einops.rearrange(self.patches(x), "b d h w -> b (h w) d")
            extra = einops.repeat(self.extra, "1 1 d -> b 1 d", b=tokens.shape[0])
            return self.head(
                einops.reduce(self.blocks(torch.cat((extra, tokens), 1)), "b n d -> b d", "mean")
            )

    model = Model().eval()
    net = dggraph.convert(model, X).eval()
    assert net.report.num_blocks == 3
    for batch in (X, X[:1], functional.pad(X, (0, 8))):
        assert torch.equal(net(batch), model(batch))
    shape = einops.rearrange(
        X, "b c h w -> b (c h w)"
    ).shape  # einops still works, and knows nothing of the trace
    assert shape == (2, 768)


class HooksGradient(Block):
    """Halves a gradient on its way back."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient / 2)
        return y


class HooksAtTheRoot(Net):
    def features(self, x: Tensor) -> Tensor:
        y = super().features(x)
        y.register_hook(lambda gradient: gradient / 2)
        return y


def test_hooks_on_gradients_in_a_forward_run() -> None:
    model = Net(HooksGradient).eval()
    net = dggraph.convert(model, X).eval()
    assert "puts a hook on the gradient of a feature map (register_hook)" in str(
        net.report.opaque[0]
    )
    for module in (model, net):
        module(X).sum().backward()
    assert torch.equal(net.stem.weight.grad, model.stem.weight.grad)


def test_hooks_on_gradients_that_cannot_be_kept_are_named() -> None:
    with pytest.raises(TraceError, match=r"backbone itself \(HooksAtTheRoot\).*\(register_hook\)"):
        dggraph.convert(HooksAtTheRoot(), X)

    class Unguarded(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            y.register_hook(lambda gradient: gradient / 2)
            return y

    with pytest.raises(InputError, match=r"cannot run without gradients.*`if y.requires_grad"):
        dggraph.convert(Net(Unguarded), X)
