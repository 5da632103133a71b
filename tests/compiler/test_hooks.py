"""Hooks put on modules after conversion: they see what they would in the backbone, may replace it,
or are refused by name.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds import KINDS, Backbone, Kept, converted
from reference import randomise
from small import Block, Net
from torch import Tensor, nn

import dggraph
from dggraph.errors import DggraphWarning, HookError
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights

X = torch.linspace(-1, 1, 3 * 3 * 16 * 16).reshape(3, 3, 16, 16)
HOOKABLE = [kind for kind in KINDS if kind not in ("lifted", "tokens")]


def watch(model: nn.Module, paths: list[str]) -> dict[tuple[str, str], Tensor]:
    """Everything that hooks of every kind see."""
    seen: dict[tuple[str, str], Tensor] = {}

    def note(path: str, what: str, values: Any) -> None:
        if values[0] is not None:
            seen[path, what] = values[0].detach().clone()

    for path in paths:
        module = model.get_submodule(path)
        module.register_forward_pre_hook(lambda _m, args, p=path: note(p, "pre", args))
        module.register_forward_hook(
            lambda _m, args, y, p=path: (note(p, "input", args), note(p, "output", [y]))[0]
        )
        module.register_forward_hook(
            lambda _m, args, kwargs, y, p=path: note(p, "keywords", args), with_kwargs=True
        )
        module.register_full_backward_pre_hook(
            lambda _m, grads, p=path: note(p, "backward pre", grads)
        )
        module.register_full_backward_hook(
            lambda _m, gi, go, p=path: (note(p, "grad input", gi), note(p, "grad output", go))[0]
        )
    return seen


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_what_they_see_in_the_backbone(kind: str, router: str) -> None:
    """All blocks and containers at once, one in the other, to the bit."""
    model = randomise(KINDS[kind]()).eval()
    net = dggraph.convert(model, X, router=router)
    paths = [
        "stem",
        "layers",
        *([f"layers.{index}" for index in range(3)] if kind in ("kept", "adapter") else []),
    ]
    expected, seen = watch(model, paths), watch(net, paths)
    images = X.clone().requires_grad_()
    model(images).square().sum().backward()
    net(images).square().sum().backward()
    assert seen.keys() == expected.keys()
    assert len(seen) == 7 * len(paths)
    assert all(torch.equal(seen[key], value) for key, value in expected.items())


def double(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output * 2


def halve(_module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
    return args[0] / 2


@pytest.mark.parametrize("path", ["stem", "layers", "layers.0", "layers.2"])
def test_hooks_replace_what_goes_in_and_comes_out(path: str) -> None:
    model = randomise(KINDS["kept"]()).eval()
    net = dggraph.convert(model, X)
    plain = net(X)
    for one in (model, net):
        one.get_submodule(path).register_forward_hook(double)
        one.get_submodule(path).register_forward_pre_hook(halve)
    with torch.no_grad():
        assert torch.equal(net(X), model(X))
        assert not torch.equal(net(X), plain)
    assert torch.equal(net(X), model(X))


@pytest.mark.parametrize("kind", HOOKABLE)
def test_executors_agree_under_hooks_that_see_whole_batches(kind: str) -> None:
    net, sizes = converted(kind), []
    net.get_submodule("layers" if kind == "concat" else "layers.1").register_forward_hook(
        lambda _m, _args, y: (sizes.append(len(y)), y * 2)[1]
    )
    with torch.no_grad():
        sparse = net(X)
        net.executor = "dense"
        torch.testing.assert_close(sparse, net(X), rtol=1e-5, atol=1e-5)
    assert sizes == [3, 3]


def test_only_the_stages_with_hooks_stop_skipping() -> None:
    net = dggraph.convert(Net(), X).eval()
    with torch.no_grad():
        for path, is_dense in (("head", False), ("blocks", True), ("blocks.0.conv1", True)):
            handle = net.get_submodule(path).register_forward_hook(double)
            net(X)
            assert [bool(stage.dense_only) for stage in net._inliner.source.plan] == [is_dense]
            handle.remove()
        net(X)
    assert not any(stage.dense_only for stage in net._inliner.source.plan)


def test_hooks_on_layers_in_blocks_see_whole_batches_unless_sparse_is_asked_for() -> None:
    net, sizes = converted("kept"), []
    for path in ("layers.0.conv1", "layers.1.conv1", "layers.2.conv1"):
        net.get_submodule(path).register_forward_hook(lambda _m, _args, y: sizes.append(len(y)))
    with torch.no_grad():
        net(X)
        assert sizes == [3, 3, 3]
        net.executor = "sparse"
        net(X)
        assert sum(sizes[3:]) < 9


def note_sizes(module: nn.Module, sizes: list[int]) -> None:
    module.register_forward_hook(lambda _m, _args, y: sizes.append(len(y)))


def test_hooks_on_a_layer_that_replaced_another_see_whole_batches() -> None:
    net, sizes = converted("kept"), list[int]()
    for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))):
        net.layers[1].conv1 = layer
        with torch.no_grad():
            net(X)
            note_sizes(layer, sizes)
            note_sizes(next(iter(layer.children()), layer), sizes)
            net(X)
    assert sizes == [3] * 4


def test_hooks_inside_a_block_that_is_one_call_see_whole_batches() -> None:
    net = dggraph.convert(KINDS["kept"](), X, leaves=(Kept,), router="stage").eval()
    ((stage, static_E),) = static_weights(net.graph).items()
    ends = [(edge.source, edge.target) for edge in net.graph.edges(stage)]
    past_E = torch.tensor([float(end == ("layers_in", "layers_out")) for end in ends])
    sizes: list[int] = []
    note_sizes(net.layers[1].conv1, sizes)
    with torch.no_grad(), pinned_gates(net, {stage: torch.stack([static_E, past_E, past_E])}):
        net(X)
        net.executor = "sparse"
        net(X)
    assert sizes == [3, 1]


def test_a_module_that_left_the_network_takes_any_hook() -> None:
    net = dggraph.convert(Net(), X)
    net.spare = nn.Linear(2, 2)
    spare = net.spare
    with pytest.raises(HookError, match="is never called by the forward"):
        spare.register_forward_hook(double)
    del net.spare
    spare.register_forward_hook(double)
    assert torch.equal(spare(torch.ones(2)), 2 * (spare.weight.sum(1) + spare.bias))


def test_without_hooks_nothing_is_left() -> None:
    net = converted("kept")
    code = net.lowered.code
    handles = [
        net.get_submodule(path).register_forward_hook(double) for path in ("layers", "layers.1")
    ]
    assert "enter" in net.lowered.code
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        expected = converted("kept")(X)
        assert torch.equal(net(X), expected)
    assert net.lowered.code == code


def test_copies_keep_hooks_of_their_own() -> None:
    net, seen = converted("kept"), []
    handle = net.layers.register_forward_hook(lambda module, _args, _y: seen.append(module))
    twin = copy.deepcopy(net)
    handle.remove()
    for one in (net, twin):
        one(X)
    assert len(seen) == 1
    assert seen[0] is twin.layers
    assert torch.equal(
        dggraph.optimize_for_inference(twin)(X)[0].isfinite(), torch.ones(5, dtype=torch.bool)
    )
    assert len(seen) == 2


class Same(nn.Module):
    """One block, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Kept()
        self.rest = nn.Sequential(Kept(), Kept())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rest(self.block(self.block(x)))
        return result


def test_every_call_of_a_module_runs_its_hooks() -> None:
    model = randomise(Backbone(Same())).eval()
    net = dggraph.convert(model, X)
    calls: list[nn.Module] = []
    for one in (model, net):
        one.get_submodule("layers.block").register_forward_hook(
            lambda module, _args, y: (calls.append(module), y * 2)[1]
        )
    assert torch.equal(net(X), model(X))
    assert len(calls) == 4


class WithoutGradients(Block):
    """Calls its norm within `no_grad`."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        with torch.no_grad():
            scale = self.norm(y)
        return torch.relu(x + y * scale.sigmoid())


@pytest.mark.parametrize("executor", ["auto", "dense"])
def test_hooks_on_a_layer_called_within_no_grad_run_once(executor: str) -> None:
    net, sizes = dggraph.convert(Net(WithoutGradients), X).eval(), list[int]()
    net.executor = executor
    net.blocks[1].norm.register_forward_hook(lambda _m, _args, y: (sizes.append(len(y)), y + 1)[1])
    with pinned_gates(net, static_weights(net.graph)):
        with torch.no_grad():
            changed = net(X)
        net.blocks[1].norm.bias.data += 1
        net.blocks[1].norm._forward_hooks.clear()
        assert torch.allclose(net(X), changed, atol=1e-5)
    assert sizes == [3]


def test_a_lifted_block_shows_x_plus_f_without_gradient() -> None:
    model = Net().eval()
    net, seen, expected = dggraph.convert(model, X), [], []
    model.blocks[1].register_forward_hook(lambda _m, args, y: expected.extend([*args, y]))
    with pytest.warns(
        DggraphWarning,
        match=(
            r"'blocks\.1' \(Block\) is lifted.*'blocks', around it, or 'blocks\.1\.conv2',"
            r" inside it"
        ),
    ):
        handle = net.blocks[1].register_forward_hook(lambda _m, args, y: seen.extend([*args, y]))
    model(X)
    assert torch.equal(net(X), model(X))
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=False))
    assert not any(one.requires_grad for one in seen)
    handle.remove()
    for kind in ("register_full_backward_hook", "register_full_backward_pre_hook"):
        with pytest.raises(
            HookError, match=r"'blocks\.1'.*no gradient.*'blocks'.*residual=\"keep\""
        ):
            getattr(net.blocks[1], kind)(lambda *_: None)
    for kind, hook in (("register_forward_hook", double), ("register_forward_pre_hook", halve)):
        with pytest.warns(DggraphWarning, match=r"blocks\.1"):
            handle = getattr(net.blocks[1], kind)(hook)
        with pytest.raises(HookError, match=r"replaces the (in|out)put of a Block"):
            net(X)
        handle.remove()


class Awkward(Net):
    """Modules that hooks cannot run on: unused, with two inputs, with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.merge, self.split = Merge(), Split()
        self.steps = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1))

    def features(self, x: Tensor) -> Tensor:
        x = super().features(x)
        for step in self.steps:
            x = step(x)
        merged: Tensor = self.merge(x, torch.relu(x)) + self.split(x)[0]
        return merged


class Merge(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.conv(x)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("aux", r"'aux' \(Sequential\) is never called"),
        ("merge", r"'merge' \(Merge\) takes 2 feature maps"),
        (
            "split",
            r"'split' \(Split\) takes or returns feature maps in a list.*'split\.conv', inside it",
        ),
    ],
)
def test_a_module_without_a_place_in_the_graph_refuses_hooks(path: str, message: str) -> None:
    net = dggraph.convert(Awkward(), X)
    for kind in (
        "forward_hook",
        "forward_pre_hook",
        "full_backward_hook",
        "full_backward_pre_hook",
    ):
        with pytest.raises(HookError, match=message):
            getattr(net.get_submodule(path), f"register_{kind}")(lambda *_: None)
    assert torch.equal(net.eval()(X), net(X))


def test_what_the_backbone_does_not_call_either_is_said() -> None:
    net = dggraph.convert(Awkward(), X)
    with pytest.warns(
        DggraphWarning, match=r"'steps' \(Sequential\) is not called itself.*Hook 'steps\.1'"
    ):
        net.steps.register_forward_hook(double)


def test_hooks_of_the_old_kind_and_on_the_lowered_module_are_refused() -> None:
    net = converted("kept")
    with pytest.raises(HookError, match=r"'layers'.*register_full_backward_hook"):
        net.layers.register_backward_hook(lambda *_: None)
    net.layers.register_full_backward_hook(lambda *_: None)
    with pytest.raises(HookError, match="Hook the network itself"):
        net.lowered.register_forward_hook(double)
    net.register_forward_hook(double)
    assert torch.equal(net.eval()(X), 2 * converted("kept")(X))


def test_a_pre_hook_gives_one_tensor() -> None:
    net = converted("kept")
    net.layers.register_forward_pre_hook(lambda _m, args: (*args, 1))
    with pytest.raises(HookError, match="Sequential returns other arguments than one tensor"):
        net(X)


def test_handles_outlive_a_swapped_head() -> None:
    net, seen = converted("kept"), []
    handle = net.layers.register_forward_hook(lambda *_: seen.append(1))
    net.head = nn.Linear(8, 2)
    assert net(X).shape == (3, 2)
    assert seen == [1]
    handle.remove()
    net(X)
    assert seen == [1]


def test_compiled_networks_run_hooks_that_were_there_before() -> None:
    net = converted("kept")
    net.layers.register_forward_hook(double)
    compiled: Callable[[Tensor], Tensor] = torch.compile(net, backend="eager", fullgraph=True)  # type: ignore[assignment]
    torch.testing.assert_close(compiled(X), net(X))


def test_captum_explains_layers_as_in_the_backbone() -> None:
    attr = pytest.importorskip(
        "captum.attr", reason="captum is not a dependency; it is what people explain layers with"
    )
    model = randomise(KINDS["kept"]()).eval()
    net = dggraph.convert(model, X)
    for path in ("layers", "layers.1"):
        for method in (attr.LayerGradCam, attr.LayerActivation):
            options = {"target": 1} if method is attr.LayerGradCam else {}
            ours, theirs = (
                method(one, one.get_submodule(path)).attribute(X.clone(), **options)
                for one in (net, model)
            )
            assert torch.equal(ours, theirs)


def test_a_hook_in_train_mode_gets_the_batch() -> None:
    net, seen = dggraph.convert(Net(type("Keeps", (Block,), {})), X, residual="keep").train(), []
    net.blocks[2].register_full_backward_hook(lambda _m, _gi, go: seen.append(tuple(go[0].shape)))
    net(X).sum().backward()
    assert seen == [(3, 8, 8, 8)]
