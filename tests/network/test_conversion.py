"""Conversion: exact, alive, routed as an independent reference routes, and safe to copy, move and
train.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torchvision
from reference import hooked, randomise, randomise_routers
from torch import Tensor, nn

import dggraph
from dggraph.errors import (
    DiscoveryError,
    GateError,
    InputError,
    LoweringError,
    NothingToRouteError,
    TraceError,
    WiringError,
)
from dggraph.graph.wiring import WIRINGS
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.ops.gating import GATES
from dggraph.ops.routing import ROUTERS

LAYOUTS = {
    "resnet50": [3, 4, 6, 3],
    "mobilenet_v2": [2, 3, 4, 3, 3],
    "efficientnet_b0": [2, 2, 3, 3, 4],
    "convnext_tiny": [3, 3, 9, 3],
    "shufflenet_v2_x1_0": [4, 8, 4],
    "swin_t": [2, 2, 6, 2],
    "vit_b_16": [12],
    "maxvit_t": [2, 2, 5, 2],
    "regnet_y_400mf": [3, 6, 6],
}
KINDS = {
    "resnet18": 64,
    "mobilenet_v2": 64,
    "densenet121": 64,
    "googlenet": 64,
    "swin_t": 64,
    "squeezenet1_1": 64,
    "vgg11": 64,
}


def build(name: str, **options: Any) -> nn.Module:
    lazy = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model: Any = torchvision.models.get_model(name, weights=None, **lazy, **options)
    if (
        name == "vgg11"
    ):  # the classifier has 124 of its 133 million weights, and nothing that is routed
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 16), nn.ReLU(), nn.Linear(16, 1000))
    return model  # type: ignore[no-any-return]


@functools.cache
def _converted(name: str, router: str) -> tuple[nn.Module, DynamicNetwork]:
    model = randomise(build(name)).eval()
    return model, dggraph.convert(model, torch.rand(1, 3, KINDS[name], KINDS[name]), router=router)


def converted(name: str, router: str = "node") -> tuple[nn.Module, DynamicNetwork]:
    """A random model and its conversion; copies, made from one conversion for all tests."""
    return copy.deepcopy(_converted(name, router))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    size = 32 if name == "vit_b_16" else 224
    if name == "maxvit_t":  # its own depths and kinds of blocks, an eighth of its width
        model: nn.Module = torchvision.models.MaxVit(
            input_size=(size, size),
            stem_channels=8,
            partition_size=7,
            block_channels=[8, 16, 32, 64],
            block_layers=[2, 2, 5, 2],
            head_dim=8,
            stochastic_depth_prob=0.2,
        )
    else:
        model = build(name, **({"image_size": size} if name == "vit_b_16" else {}))
    net = dggraph.convert(model, torch.zeros(1, 3, size, size))
    assert [stage.depth for stage in net.report.stages] == LAYOUTS[name]
    if name == "resnet50":
        assert [stage.num_blocks for stage in net.report.stages] == [2, 3, 5, 2]
        assert [stage.num_edges for stage in net.report.stages] == [6, 10, 21, 6]


@pytest.mark.parametrize("residual", ["auto", "keep", "lift"])
@pytest.mark.parametrize("name", KINDS)
def test_a_fresh_conversion_is_the_backbone(name: str, residual: Any) -> None:
    """With untrained routers the network is the backbone; to the bit, unless several residuals of a
    block were lifted.
    """
    if residual == "auto":
        model, net = converted(name)
    else:
        model = randomise(build(name)).eval()
        net = dggraph.convert(model, torch.rand(1, 3, KINDS[name], KINDS[name]), residual=residual)
    x = torch.randn(5, 3, KINDS[name], KINDS[name])
    with torch.no_grad():
        expected, actual = model(x), net(x)
    if residual == "lift" and name == "swin_t":
        assert (expected - actual).abs().max() <= 1e-5 * expected.abs().max()
    else:
        assert torch.equal(expected, actual)
    assert expected.std() > 0


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("name", KINDS)
def test_random_routers_equal_the_hooked_original(name: str, router: str) -> None:
    model, net = converted(name, router)
    randomise_routers(net)
    x = torch.randn(3, 3, KINDS[name], KINDS[name])
    recording = dggraph.record(net, x)
    outputs, adjacency = hooked(net, model, x)
    for index in range(3):
        assert recording.paths[index].margin > 1e-4
        difference = (recording.output[index] - outputs[index][0]).abs().max()
        assert difference <= 5e-5 * outputs[index].abs().max()
        for stage in net.graph.stages:
            matrix = recording.adjacency[stage][index]
            order = [node.name for node in net.graph.nodes(stage)]
            for i, source in enumerate(order):
                for j, target in enumerate(order):
                    assert float(matrix[i, j]) == pytest.approx(
                        adjacency[stage][index].get((source, target), 0), abs=2e-4
                    )
    assert any(
        weight == 0
        for path in recording.paths
        for weights in path.weights.values()
        for weight in weights
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "swin_t"])
def test_opening_each_other_edge_changes_the_output(name: str) -> None:
    model = randomise(build(name)).eval()
    net = dggraph.convert(model, torch.rand(1, 3, 64, 64), residual="keep")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        static = net(x)
        for stage in net.graph.stages:
            weights = static_weights(net.graph)[stage]
            others = [i for i, edge in enumerate(net.graph.edges(stage)) if not edge.is_static]
            assert others
            for place in others:
                opened = weights.clone()
                opened[place] = 1
                with pinned_gates(net, {stage: opened}):
                    assert not torch.equal(net(x), static)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "resnext50_32x4d", "regnet_y_400mf"])
def test_every_edge_and_router_parameter_is_alive_at_the_start(name: str) -> None:
    net = dggraph.convert(randomise(build(name)), torch.rand(1, 3, 64, 64)).train()
    output, gates = net(torch.randn(4, 3, 64, 64), return_gates=True)
    output.square().mean().backward()
    assert all(raw.shape[1] == len(net.graph.edges(stage)) for stage, raw in gates.raw.items())
    routers = {key: p for key, p in net.lowered.named_parameters() if key.startswith("dg_")}
    assert routers
    for key, parameter in routers.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        per_edge = parameter.grad if parameter.ndim == 1 else parameter.grad.abs().sum(1)
        assert per_edge.ne(0).all(), key


def test_original_keys_stand_and_the_caller_is_left_alone() -> None:
    model = randomise(build("mobilenet_v2")).train()
    before = copy.deepcopy(model.state_dict())
    net = dggraph.convert(model, torch.rand(1, 3, 64, 64))
    missing, unexpected = net.lowered.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(key.startswith("dg_") for key in missing)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert net.training
    assert all(module.training for module in net.lowered.modules())


def test_auxiliary_heads_are_kept_frozen_and_reported() -> None:
    net = dggraph.convert(build("googlenet"), torch.rand(1, 3, 64, 64))
    assert net.report.frozen
    assert all(name.startswith("aux") for name in net.report.frozen)
    assert not any(net.lowered.get_parameter(name).requires_grad for name in net.report.frozen)


def test_deepcopy_keeps_a_swapped_head_tied_weights_and_flags() -> None:
    net = randomise_routers(
        dggraph.convert(randomise(build("resnet18")), torch.rand(1, 3, 64, 64))
    ).eval()
    net.lowered.fc = nn.Linear(512, 7)
    net.lowered.layer1[0].conv2.weight = net.lowered.layer1[0].conv1.weight
    net.lowered.layer2[0].conv1.weight.requires_grad_(False)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 64, 64)
    assert twin(x).shape == (2, 7)
    assert torch.equal(net(x), twin(x))
    assert twin.lowered.layer1[0].conv2.weight is twin.lowered.layer1[0].conv1.weight
    assert not twin.lowered.layer2[0].conv1.weight.requires_grad
    assert type(twin.lowered.layer1[0]) is type(net.lowered.layer1[0])
    with torch.no_grad():
        twin.lowered.conv1.weight.mul_(2)
    assert not torch.equal(net(x), twin(x))
    names = {fx_node.name for fx_node in twin.lowered.graph.nodes}
    assert all(
        {*block.fx_nodes, block.input, block.output} <= names
        for stage in twin.plan
        for block in stage.blocks
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_moves(dtype: torch.dtype) -> None:
    model = randomise(build("resnet18")).eval()
    net = dggraph.convert(model, torch.rand(1, 3, 64, 64)).to(dtype)
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    assert torch.equal(net(x), model.to(dtype)(x))


@pytest.mark.cpu
def test_return_gates_and_training_step_through_ddp(tmp_path: Any) -> None:
    """Plain DDP, one process on gloo: forward, gates with gradient, backward, step."""
    net = dggraph.convert(build("googlenet", aux_logits=False), torch.rand(1, 3, 64, 64)).train()
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        x = torch.randn(4, 3, 64, 64)
        for _ in range(2):
            output, gates = parallel(x, return_gates=True)
            (output.mean() + sum(weights.sum() for weights in gates.weights.values())).backward()
        assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    finally:
        torch.distributed.destroy_process_group()


def test_timm_checkpoint_helpers(tmp_path: Any) -> None:
    from timm.models import load_checkpoint
    from timm.utils import get_state_dict

    net = randomise_routers(
        dggraph.convert(randomise(build("resnet18")), torch.rand(1, 3, 64, 64))
    ).eval()
    torch.save({"state_dict": get_state_dict(net)}, tmp_path / "checkpoint.pth")
    other = dggraph.convert(build("resnet18"), torch.rand(1, 3, 64, 64)).eval()
    load_checkpoint(other, str(tmp_path / "checkpoint.pth"), weights_only=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(x), other(x))


def test_multi_output_backbones() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model = randomise(build("resnet18")).eval()
    extractor = create_feature_extractor(model, {"layer2": "two", "layer4": "four"})
    detector = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None
    )
    x = torch.randn(2, 3, 96, 64)
    for backbone in (extractor, detector.backbone.body):
        net = dggraph.convert(backbone.eval(), torch.rand(1, 3, 64, 64))
        expected, actual = backbone(x), net(x)
        assert list(expected) == list(actual)
        assert all(torch.equal(expected[key], actual[key]) for key in expected)
        assert net.report.num_blocks >= 5


def test_dropout_and_stochastic_depth_still_act_in_training() -> None:
    net = dggraph.convert(build("swin_t"), torch.rand(1, 3, 64, 64))
    x = torch.randn(2, 3, 64, 64)
    net.train()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_macs_of_the_static_path_and_of_a_skipped_block() -> None:
    """By hand on ResNet-18's layer2: one routed block of 231,211,008 MACs at 224 pixels, 28 x 28 x
    128 elements an edge.
    """
    net = dggraph.convert(build("resnet18"), stages={"layer2": ["layer2.0", "layer2.1"]}).eval()
    x = torch.randn(1, 3, 224, 224)
    edge, router = 128 * 28 * 28, 128 * 2 + 128
    assert int(dggraph.record(net, x).macs) == net.report.total_macs + 2 * edge + router
    with pinned_gates(net, {"layer2": torch.tensor([0.0, 1.0, 0.0])}):
        skipped = dggraph.record(net, x)
    assert int(skipped.macs) == net.report.total_macs - 231_211_008 + edge + 128 * 2
    assert skipped.paths[0].live_nodes(net.graph) == {"layer2_0", "layer2_out"}


class Controlled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), Controlled())

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if x.mean() > 0:
            x = x + 1
        return x


def test_bad_models_and_options() -> None:
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(TraceError, match=r"Inner.*test_conversion\.py:\d+.*leaves"):
        dggraph.convert(Inner(), image)
    with pytest.raises(NothingToRouteError, match="stages="):
        dggraph.convert(nn.Sequential(nn.Conv2d(3, 8, 1)), image)
    assert dggraph.convert(nn.Sequential(nn.Conv2d(3, 8, 1)), image, allow_static=True)(
        image
    ).shape == (1, 8, 32, 32)
    with pytest.raises(InputError, match="does not declare its input size"):
        dggraph.convert(nn.Sequential(nn.Conv2d(3, 8, 1)))
    with pytest.raises(InputError, match="float tensor"):
        dggraph.convert(build("resnet18"), torch.zeros(1, 3, 32, 32, dtype=torch.long))
    with pytest.raises(InputError, match="cannot run on an input of shape"):
        dggraph.convert(build("resnet18"), torch.zeros(1, 5, 32, 32))
    with pytest.raises(InputError, match="router='nod'"):
        dggraph.convert(build("resnet18"), image, router="nod")
    with pytest.raises(InputError, match=r"threshold=1\.5"):
        dggraph.convert(build("resnet18"), image, threshold=1.5)
    with pytest.raises(WiringError, match="needs wiring"):
        dggraph.convert(build("mobilenet_v2"), image, residual="lift", wiring="window(2)")
    with pytest.raises(DiscoveryError, match="lists no blocks"):
        dggraph.convert(build("resnet18"), image, stages={"layer1": []})
    with pytest.raises(DiscoveryError, match="is not a module"):
        dggraph.convert(build("resnet18"), image, stages={"layer1": ["layer1.7"]})
    with pytest.raises(DiscoveryError, match="do not feed each other"):
        dggraph.convert(build("resnet18"), image, stages={"layer1": ["layer1.1", "layer3.0"]})


class Text(nn.Module):
    """No image model: token ids in, one vector a sentence out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(self.words(ids))
        return hidden.mean(1)


def test_models_that_take_no_images() -> None:
    with pytest.raises(InputError, match="image batch is a float tensor"):
        dggraph.convert(Text(), torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(InputError, match="cannot run on an input of shape"):
        dggraph.convert(Text(), torch.rand(1, 3, 32, 32))
    with pytest.raises(InputError, match="cannot run on an input of shape"):
        dggraph.convert(torchvision.models.video.r3d_18(), torch.rand(1, 3, 32, 32))


def test_wrong_inputs_at_run_time() -> None:
    net = dggraph.convert(build("resnet18"), torch.rand(1, 3, 64, 64)).eval()
    for wrong in (torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64), torch.rand(1, 64, 64, 3)):
        with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
            net(wrong)
    assert net(torch.rand(2, 3, 50, 70)).shape == (2, 1000)
    with pytest.raises(InputError, match="already converted"):
        dggraph.convert(net, torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("name", KINDS)
def test_device_moves(name: str, router: str) -> None:
    """Nothing made inside the forward stays on the device it was converted on."""
    net = converted(name, router)[1].to("meta")
    for mode in (True, False):
        output, gates = net.train(mode)(torch.rand(2, 3, 64, 64, device="meta"), return_gates=True)
        assert output.device.type == "meta"
        assert {one.device.type for one in gates.weights.values()} == {"meta"}


class MaxRouter(nn.Module):
    def __init__(self, num_channels: int, num_edges: int, channel_axis: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_channels, num_edges)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.amax((2, 3)))  # type: ignore[no-any-return]


class ClampedGate(nn.Module):
    def __init__(self, static: Sequence[bool]) -> None:
        super().__init__()
        self.register_buffer("static", torch.tensor(static, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Tensor:
        return (self.static + logits).clamp(0, 2)  # type: ignore[no-any-return, operator]


@pytest.fixture
def registries() -> Iterator[None]:
    saved = [(registry, dict(registry)) for registry in (ROUTERS, GATES, WIRINGS)]
    yield
    for registry, before in saved:
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


def test_registered_router_gate_and_wiring(registries: None, tmp_path: Any) -> None:
    """A user's own parts work like ours: exact at the start, routed afterwards, kept by an
    archive.
    """
    dggraph.register_router("max", MaxRouter)
    dggraph.register_gate("clamped", ClampedGate)
    dggraph.register_wiring(
        "gap", lambda gap: lambda size: ((i, i + gap) for i in range(size - gap))
    )
    model = randomise(build("resnet18")).eval()
    net = dggraph.convert(
        model, torch.rand(1, 3, 64, 64), router="max", gate="clamped", wiring="gap(2)"
    )
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(x), model(x))
    assert [stage.num_edges for stage in net.report.stages] == [5, 3, 3, 3]
    randomise_routers(net)
    assert not torch.equal(net(x), model(x))
    dggraph.save(net, tmp_path / "a")
    assert torch.equal(dggraph.load(tmp_path / "a", model=model)(x), net(x))
    with pytest.raises(InputError, match="router named 'max' is already registered"):
        dggraph.register_router("max", MaxRouter)
    with pytest.raises(InputError, match="gate named 'clamped' is already registered"):
        dggraph.register_gate("clamped", ClampedGate)
    with pytest.raises(WiringError, match="'gap'"):
        dggraph.register_wiring("gap", lambda: lambda size: ())


class Blind(nn.Module):
    """Learned edges that are the same for every instance."""

    def __init__(self, num_channels: int, num_edges: int, channel_axis: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_edges))

    def forward(self, features: Tensor) -> Tensor:
        return self.bias.expand(len(features), -1)


def test_a_router_that_hands_out_its_parameter_is_counted_too(registries: None) -> None:
    """It has no multiplications, and must not trip what counts them."""
    dggraph.register_router("blind", Blind)
    net = dggraph.convert(build("resnet18"), torch.rand(1, 3, 64, 64), router="blind")
    assert all(stage.vertices[0] == 0 for stage in net.macs_table.stages.values())


class CountsCalls(nn.Module):
    """Changes its output from call to call: no lowering can equal it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(torchvision.models.resnet.BasicBlock(4, 4) for _ in range(2)))
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)) + x.shape[0] * torch.rand(1)


def test_a_network_that_cannot_be_equalled_is_refused() -> None:
    with pytest.raises(LoweringError, match="two outputs for one input"):
        dggraph.convert(CountsCalls(), torch.rand(1, 3, 16, 16))


def test_nan_names_the_edge() -> None:
    net = dggraph.convert(build("resnet18"), torch.rand(1, 3, 64, 64)).eval()
    with torch.no_grad():
        net.lowered.dg_layer2.router_1.bias[0] = torch.nan
    with pytest.raises(GateError, match="layer2_1 -> layer2_out is NaN for instance 0"):
        dggraph.record(net, torch.rand(2, 3, 64, 64))


def test_pickling_is_refused() -> None:
    import pickle

    with pytest.raises(LoweringError, match=r"dggraph\.save"):
        pickle.dumps(dggraph.convert(build("resnet18"), torch.rand(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("name", "depths", "axes"),
    [
        (
            "pvt_v2_b0",
            [2, 2, 2, 2],
            [-1, -1, -1, -1],
        ),  # blocks read a size that was computed outside of them
        ("tiny_vit_5m_224", [2, 2, 6, 2], [1, -1, -1, -1]),  # opaque blocks, channels last
        (
            "test_nfnet",
            [3, 2, 2],
            [1, 1, 1],
        ),  # convolutions called as functions, by modules with a path
    ],
)
def test_layouts_of_timm(name: str, depths: list[int], axes: list[int]) -> None:
    net = dggraph.convert(f"timm:{name}")
    assert [stage.depth for stage in net.report.stages] == depths
    assert [stage.channel_axis for stage in net.graph.stages.values()] == axes
    paths = dict(net.lowered.named_modules())
    assert all(
        node.module_path in paths
        for stage in net.graph.stages
        for node in net.graph.nodes(stage)
        if node.kind == "block"
    )
