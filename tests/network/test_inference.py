"""Ready for inference: folded norms, channels-last, bfloat16; each gives what the network gave,
along the same paths.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from kinds import KINDS, Kept, converted
from PIL import Image
from reference import randomise, randomise_routers
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.ops.routing import LinearRouter

LAST = torch.channels_last
X = torch.randn(6, 3, 16, 16, generator=torch.Generator(torch.get_default_device()).manual_seed(3))


def gates_of(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and the open edges of all stages."""
    with torch.no_grad():
        output, gates = net(x, return_gates=True)
    return output, torch.cat(list(gates.weights.values()), 1) != 0


def is_close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((actual.float() - expected).abs().max() <= tolerance * expected.abs().max())


def norms_in(net: Any) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.lowered.modules())


@contextmanager
def seen_by(net: Any, kind: type[nn.Module], *, outputs: bool = False) -> Iterator[list[Tensor]]:
    """What modules of that kind get, or give, within this context."""
    seen: list[Tensor] = []
    handles = [
        module.register_forward_hook(
            lambda _module, args, output: seen.append(output if outputs else args[0])
        )
        for module in net.lowered.modules()
        if isinstance(module, kind)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("kind", KINDS)
def test_optimised_is_the_same_function(kind: str, router: str) -> None:
    net = converted(kind, router).train()
    state = copy.deepcopy(net.state_dict())
    twin = dggraph.optimize_for_inference(net)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert not twin.training
    assert not any(p.requires_grad for p in twin.parameters())
    net.eval()
    recording = dggraph.record(net, X)
    assert min(path.margin for path in recording.paths) > 1e-4
    for executor in ("dense", "sparse"):
        twin.executor = executor
        with torch.inference_mode():
            output, edges = gates_of(twin, X)
        assert is_close(output, recording.output, 1e-4)
        assert torch.equal(
            edges, torch.tensor([sum(path.weights.values(), ()) for path in recording.paths]) != 0
        )
    assert torch.equal(dggraph.record(twin, X).macs, recording.macs)
    assert torch.equal(copy.deepcopy(twin)(X), twin(X))
    # Concat blocks are norm -> relu -> conv: only their first conv has a norm behind it.
    assert norms_in(twin) == (3 if kind == "concat" else 0)


def test_kernels_are_channels_last() -> None:
    twin = dggraph.optimize_for_inference(converted("kept"))
    kernels = [module.weight for module in twin.lowered.modules() if isinstance(module, nn.Conv2d)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=LAST) for kernel in kernels)
    with torch.no_grad(), seen_by(twin, nn.Conv2d) as inputs:
        twin(X)
    assert all(features.is_contiguous(memory_format=LAST) for features in inputs[1:])


class Awkward(nn.Module):
    """A stem with a convolution read twice, a norm called twice, a norm without statistics, a
    convolution called again without gradients; then blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(6))
        self.read_twice, self.twice, self.hooked, self.again = (nn.BatchNorm2d(8) for _ in range(4))
        self.stateless = nn.BatchNorm2d(8, track_running_stats=False)
        self.blocks = nn.Sequential(*(Kept() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv[0](x)
        x = self.read_twice(y) + y
        x = self.twice(self.conv[2](self.twice(self.conv[1](x))))
        x = self.hooked(self.conv[3](x))
        with torch.no_grad():
            z = self.conv[5](x)
        x = self.again(self.conv[5](x)) + z
        result: Tensor = self.blocks(self.stateless(self.conv[4](x)))
        return result


def test_what_may_not_be_folded_stays() -> None:
    net = randomise_routers(dggraph.convert(randomise(Awkward()), torch.rand(1, 3, 8, 8))).eval()
    net.lowered.hooked.register_forward_hook(lambda _module, _args, output: output * 2)
    twin = dggraph.optimize_for_inference(net)
    assert norms_in(twin) == 5
    assert isinstance(twin.lowered.hooked, nn.BatchNorm2d)
    x = torch.randn(4, 3, 8, 8)
    output, edges = gates_of(twin, x)
    expected, expected_edges = gates_of(net, x)
    assert is_close(output, expected, 1e-4)
    assert torch.equal(edges, expected_edges)


def test_timm_norms_leave_their_activation() -> None:
    timm = pytest.importorskip("timm")
    net = randomise_routers(
        dggraph.convert(randomise(timm.create_model("regnety_002")), torch.rand(1, 3, 32, 32))
    ).eval()
    twin = dggraph.optimize_for_inference(net)
    x = torch.randn(3, 3, 32, 32)
    output, edges = gates_of(twin, x)
    expected, expected_edges = gates_of(net, x)
    assert norms_in(net) == 44
    assert norms_in(twin) == 0
    assert is_close(output, expected, 1e-4)
    assert torch.equal(edges, expected_edges)


def test_it_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    twin = dggraph.optimize_for_inference(converted("kept"))
    assert twin.eval() is twin
    with pytest.raises(InputError, match=r"optimised for inference.*cannot be trained"):
        twin.train()
    with pytest.raises(InputError, match="Save the network that it was made from"):
        dggraph.save(twin, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_and_bfloat16(kind: str, router: str) -> None:
    """Blocks see channels-last features, routers decide in float32, and the paths are those of
    float32.
    """
    net = converted(kind, router)
    expected, expected_edges = gates_of(net, X)
    wide = torch.tensor([path.margin > 0.02 for path in dggraph.record(net, X).paths])
    assert wide.any()
    last = copy.deepcopy(net).to(memory_format=LAST)
    for executor in ("dense", "sparse"):
        last.executor = executor
        for is_bfloat16 in (False, True):
            with (
                torch.autocast(
                    torch.get_default_device().type, torch.bfloat16, enabled=is_bfloat16
                ),
                seen_by(last, nn.Conv2d) as inputs,
                seen_by(last, LinearRouter, outputs=True) as logits,
            ):
                output, edges = gates_of(last, X.to(memory_format=LAST))
            assert all(features.is_contiguous(memory_format=LAST) for features in inputs)
            assert logits
            assert all(one.dtype == torch.float32 for one in logits)
            assert output.dtype == (torch.bfloat16 if is_bfloat16 else torch.float32)
            rows = wide if is_bfloat16 else torch.ones_like(wide)
            assert torch.equal(edges[rows], expected_edges[rows])
            assert is_close(output[rows], expected[rows], 0.02 if is_bfloat16 else 1e-5)


@pytest.mark.parametrize("kind", ["kept", "lifted", "adapter"])
def test_training_in_channels_last_and_bfloat16(kind: str) -> None:
    net = converted(kind).train()
    last = copy.deepcopy(net).to(memory_format=LAST)
    with (
        seen_by(last, nn.Conv2d) as inputs,
        torch.autocast(torch.get_default_device().type, torch.bfloat16),
    ):
        output = last(X.to(memory_format=LAST))
        output.float().square().mean().backward()
    assert all(features.is_contiguous(memory_format=LAST) for features in inputs)
    net(X).square().mean().backward()
    flat = [
        torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None and p.ndim > 1])
        for one in (net, last)
    ]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Chelsea the cat, a cup of coffee; (2, 3, 224, 224) as MobileNetV2 was trained."""
    transform = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    images = [
        Image.fromarray(np.asarray(image))
        for image in (skimage.data.chelsea(), skimage.data.coffee())
    ]
    return torch.stack([transform(image) for image in images])


def mobilenet(checkpoint: Path, router: str) -> Any:
    """The trained net, with two blocks closed that these photos can do without."""
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    net = dggraph.convert(model, router=router).eval()
    for stage, block in (("features_7", "features_10"), ("features_11", "features_12")):
        owner = net.lowered.get_submodule(f"dg_{stage}")
        names = [node.name for node in net.graph.nodes(stage)]
        for edge in net.graph.incoming(block):
            decided = (
                net.graph.edges(stage) if router == "stage" else net.graph.outgoing(edge.source)
            )
            decider = owner.get_submodule(
                f"router_{0 if router == 'stage' else names.index(edge.source)}"
            )
            decider.bias.data[decided.index(edge)] = -2  # 1 + tanh(-2) = 0.04, under the threshold
    return net


ANSWERS = ["Egyptian cat", "espresso"]
LABELS = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]


def answers(output: Tensor) -> list[str]:
    return [LABELS[place] for place in output.argmax(1).tolist()]


@pytest.mark.parametrize("router", ["node", "stage"])
def test_a_trained_mobilenet_answers_in_every_form(
    mobilenet_checkpoint: Path, photos: Tensor, router: str
) -> None:
    net = mobilenet(mobilenet_checkpoint, router)
    assert all(
        0.85 < macs / net.macs_table.static < 0.95
        for macs in dggraph.record(net, photos).macs.tolist()
    )
    optimised = dggraph.optimize_for_inference(net)
    last = copy.deepcopy(net).to(memory_format=LAST)
    with torch.no_grad():
        for one in (net, optimised, last):
            for executor in ("dense", "sparse"):
                one.executor = executor
                for is_bfloat16 in (False, True):
                    with torch.autocast(
                        torch.get_default_device().type, torch.bfloat16, enabled=is_bfloat16
                    ):
                        assert answers(one(photos)) == ANSWERS


@pytest.mark.slow
@pytest.mark.parametrize("router", ["node", "stage"])
def test_a_trained_mobilenet_answers_compiled(
    mobilenet_checkpoint: Path, photos: Tensor, router: str
) -> None:
    torch._dynamo.reset()
    net = mobilenet(mobilenet_checkpoint, router)
    with torch.no_grad():
        for one in (net, dggraph.optimize_for_inference(net)):
            assert answers(torch.compile(one, fullgraph=True, dynamic=False)(photos)) == ANSWERS
    torch._dynamo.reset()


@pytest.mark.parametrize("router", ["node", "stage"])
def test_what_a_prepared_network_sees(router: str) -> None:
    """Weights bound at the first pass may still change in place, be loaded or moved."""
    net = converted("kept", router)
    randomise_routers(net)
    twin, x = dggraph.optimize_for_inference(net), X[:1]
    routing = twin.lowered.dg_layers

    def check(tolerance: float = 1e-5) -> Tensor:
        for _ in range(3):
            y, edges = gates_of(twin, x.to(next(twin.parameters()).dtype))
        twin.executor = "dense"
        expected, others = gates_of(twin, x.to(next(twin.parameters()).dtype))
        twin.executor = "auto"
        assert torch.equal(edges, others)
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
        return y

    with torch.no_grad():
        before = check()
        routing.router_0.weight.mul_(-1)
        assert not torch.equal(check(), before)
        twin.set_temperature(0.5)
        check()
        twin.set_threshold(0.3)
        check()
        before = check()
        twin.load_state_dict({key: 0.9 * value for key, value in twin.state_dict().items()})
        assert not torch.equal(check(), before)
        twin.head = nn.Linear(twin.head.in_features, twin.head.out_features)
        after = check()
        with pinned_gates(twin, static_weights(twin.graph)):
            pinned = check()
        assert not torch.equal(pinned, after)
        assert torch.equal(check(), after)
        handle = twin.head.register_forward_hook(lambda _module, _args, y: y * 2)
        assert is_close(check(), after * 2, 1e-5)
        handle.remove()
        twin.double()
        assert check().dtype == torch.float64


def test_a_prepared_network_that_was_never_trained_asks_no_router() -> None:
    net = converted("kept", "stage")
    with torch.no_grad():
        for parameter in net.lowered.dg_layers.parameters():
            parameter.zero_()
    twin = dggraph.optimize_for_inference(net)
    with torch.no_grad():
        twin(X)
    (step,) = (step for step, _ in twin._inliner.inlined.program.steps if hasattr(step, "topology"))
    assert step.routing.constant[0] == [float(edge.is_static) for edge in net.graph.edges("layers")]
    with torch.no_grad():
        y, gates = twin(X, return_gates=True)
        assert is_close(y, net(X), 1e-5)
        assert torch.equal(gates.raw["layers"], net(X, return_gates=True)[1].raw["layers"])


@pytest.mark.parametrize("name", ["weight", "bias", "temperature", "anchor_E", "loaded"])
@pytest.mark.parametrize("router", ["node", "stage"])
def test_a_decision_that_was_worked_out_beforehand_follows_its_weights(
    name: str, router: str
) -> None:
    net = converted("kept", router)
    with torch.no_grad():
        for key, parameter in net.lowered.dg_layers.named_parameters():
            parameter.fill_(0.0 if key.endswith("weight") else 0.3)
        twin = dggraph.optimize_for_inference(net)
        before = twin(X[:1])
        state = twin.lowered.dg_layers.state_dict(keep_vars=True)
        state |= dict(twin.lowered.dg_layers.named_buffers())
        if name == "loaded":
            twin.lowered.dg_layers.load_state_dict(
                {key: value - 0.2 for key, value in state.items() if "anchor" not in key}
            )
        for tensor in (tensor for key, tensor in state.items() if key.endswith(name)):
            tensor.add_(torch.linspace(-0.3, 0.4, tensor.numel()).view(tensor.shape))
        for _ in range(4):
            after = twin(X[:1])
            twin.executor = "dense"
            assert is_close(after, twin(X[:1]), 1e-5)
            twin.executor = "auto"
    assert not is_close(after, before, 1e-4)


def test_dropout_in_training_mode_acts_in_a_prepared_network() -> None:
    """As for Monte Carlo dropout."""
    backbone = nn.Sequential(*(Kept() for _ in range(3)), nn.Dropout(0.5)).eval()
    twin = dggraph.optimize_for_inference(dggraph.convert(backbone, torch.rand(1, 8, 8, 8)))
    x = torch.rand(2, 8, 8, 8)
    with torch.no_grad():
        assert torch.equal(twin(x), twin(x))
        twin.lowered.get_submodule("3").train()
        assert not torch.equal(twin(x), twin(x))


def test_other_weights_for_one_call_of_a_prepared_network() -> None:
    net = converted("kept", "stage")
    twin = dggraph.optimize_for_inference(net)
    other = {key: 0.5 * value for key, value in twin.named_parameters()}
    own = {key: value.clone() for key, value in twin.named_parameters()}
    with torch.no_grad():
        before = twin(X)
        found = torch.func.functional_call(twin, other, (X,))
        assert all(torch.equal(value, own[key]) for key, value in twin.named_parameters())
        assert is_close(twin(X), before, 1e-6)  # kernels round by how memory is aligned
        for key, value in twin.named_parameters():
            value.copy_(other[key])
        assert is_close(found, twin(X), 1e-5)
        assert not is_close(found, before, 1e-2)


def test_hooks_on_a_lifted_block_of_a_prepared_network() -> None:
    """They see x + F(x), though the last norm of the block is gone."""
    net = converted("lifted", "stage")
    block = next(node.module_path for node in net.graph.nodes("layers") if node.kind == "block")
    seen: list[Tensor] = []
    for one in (net, dggraph.optimize_for_inference(net)):
        with pytest.warns(dggraph.errors.DggraphWarning, match="is lifted"):
            one.lowered.get_submodule(block).register_forward_hook(
                lambda _module, _args, output: seen.append(output)
            )
        with torch.no_grad():
            one(X)
    assert is_close(seen[1], seen[0], 1e-4)


def test_hooks_on_the_network_itself_come_along() -> None:
    net = converted("kept", "stage")
    handle = net.register_forward_hook(lambda _module, _args, output: output * 2)
    net.register_forward_pre_hook(lambda _module, args: args[0] + 1)
    twin = dggraph.optimize_for_inference(net)
    with torch.no_grad():
        expected = net(X)
        handle.remove()
        assert is_close(twin(X), expected, 1e-4)


def test_bfloat16_on_request() -> None:
    net = converted("kept", "stage")
    randomise_routers(net)
    twin = dggraph.optimize_for_inference(net, dtype=torch.bfloat16)
    assert twin.layers[0].conv1.weight.dtype == torch.bfloat16
    assert twin.lowered.dg_layers.router_0.weight.dtype == torch.float32
    with torch.inference_mode():
        y, gates = twin(X, return_gates=True)
        expected, wanted = net(X, return_gates=True)
    assert y.dtype == torch.bfloat16
    assert gates.weights["layers"].dtype == torch.float32
    same = (gates.open["layers"] == wanted.open["layers"]).all(1)
    assert same.sum() >= 4
    assert is_close(y[same], expected[same], 0.03)
    with pytest.raises(InputError, match="int8 is not a floating-point type"):
        dggraph.optimize_for_inference(net, dtype=torch.int8)


def test_images_take_the_type_of_the_weights() -> None:
    twin = dggraph.optimize_for_inference(converted("kept", "stage"), dtype=torch.bfloat16)
    with torch.inference_mode():
        again = dggraph.optimize_for_inference(twin)
        assert torch.equal(again(X), twin(X))
        with pytest.raises(InputError, match=r"takes torch.bfloat16, got torch.uint8"):
            twin(X.byte())
        with pytest.raises(InputError, match="must be a tensor of images"):
            twin(x="images")
        assert copy.deepcopy(twin).float()(X).dtype == torch.float32
        assert twin.double()(X).dtype == torch.float64


def test_images_make_their_plans_known() -> None:
    net = converted("kept", "stage")
    randomise_routers(net)
    twin = dggraph.optimize_for_inference(net, images=X)
    (step,) = (step for step, _ in twin._inliner.inlined.program.steps if hasattr(step, "topology"))
    known = len(step.plans.plans)
    assert known >= len({tuple(row) for row in gates_of(twin, X)[1].tolist()}) > 1
    with torch.no_grad():
        for image in X:
            twin(image[None])
    assert len(step.plans.plans) == known


@pytest.mark.slow
@pytest.mark.parametrize("router", ["node", "stage"])
def test_compiled_blocks(router: str) -> None:
    net = converted("kept", router)
    randomise_routers(net)
    twin, plain = (dggraph.optimize_for_inference(net, compile=one) for one in (True, False))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            for x in (X, X[:1], X[1:4]):
                assert is_close(twin(x), plain(x), 1e-4)
