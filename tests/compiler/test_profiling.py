"""Profiles: quantised layers count, features that no gate can weigh stay static, failures are told
once and rightly.
"""

import logging
from typing import Any

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, fx, nn

import dggraph
from dggraph.compiler import profiling
from dggraph.compiler.quantised import FLOPS_OF_QUANTISED
from dggraph.errors import InputError, NothingToRouteError

QUANTISES = pytest.mark.skipif(
    "qnnpack" not in torch.backends.quantized.supported_engines,
    reason="this build of torch quantises nothing",
)


def test_a_wrong_size_is_told_without_torchs_own_log(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(7, 1), nn.Conv2d(4, 4, 1))
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    with (
        caplog.at_level(logging.DEBUG, logger.name),
        pytest.raises(InputError, match=r"\(2, 3, 8, 8\).*too small"),
    ):
        dggraph.convert(model, torch.zeros(1, 3, 8, 8))
    assert not caplog.records
    assert not logger.disabled


class Clips(Net):
    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        mean: Tensor = logits.view(-1, self.num_frames, logits.shape[1]).mean(1)
        return mean


@pytest.mark.parametrize(("num_frames", "batch"), [(2, 2), (4, 4), (8, 1), (7, 14), (16, 1)])
def test_frames_folded_into_the_batch_are_told(num_frames: int, batch: int) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"(runs on a batch of \d+, but not of 2|fails on a batch of 3): shape.*B \* T.*Convert"
            r" the image backbone"
        ),
    ):
        dggraph.convert(Clips(num_frames), torch.zeros(batch, 3, 16, 16))


def test_clips_are_told() -> None:
    with pytest.raises(InputError, match=r"\(1, 3, 4, 16, 16\): clips.*flatten\(0, 1\)"):
        dggraph.convert(Net(), torch.zeros(1, 3, 4, 16, 16))


class Complex(Net):
    """Blocks on complex features, between real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.spectral = nn.Sequential(
            *(nn.Conv2d(8, 8, 1, dtype=torch.complex64) for _ in range(3))
        )

    def features(self, x: Tensor) -> Tensor:
        features = super().features(x)
        return features + self.spectral(features.to(torch.complex64)).real


def test_complex_features_stay_static() -> None:
    model = Complex().eval()
    net = dggraph.convert(model, X)
    assert torch.equal(net(X), model(X))
    assert [stage.name for stage in net.report.stages] == ["blocks"]
    assert any(
        part.module_path == "spectral" and "torch.complex64" in part.reason
        for part in net.report.static
    )


class ComplexWeight(Block):
    """Real features, a complex weight inside."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, 1, 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.fft.ifft2(torch.fft.fft2(self.conv1(x)) * self.filter).real


def test_complex_weights_are_kept(tmp_path: Any) -> None:
    model = Net(ComplexWeight).eval()
    net = dggraph.convert(model, X)
    dggraph.save(net, tmp_path / "net")
    assert torch.equal(net(X), model(X))
    assert torch.equal(dggraph.load(tmp_path / "net", model)(X), model(X))


@QUANTISES
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore:torch.quantize_per:UserWarning",
    "ignore:.*deprecated:UserWarning",
)
def test_dynamically_quantised_layers_count_and_are_not_saved(tmp_path: Any) -> None:
    from torch.ao.quantization import quantize_dynamic

    model = Net().eval()
    quantised = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    net = dggraph.convert(quantised, X)
    assert torch.equal(net(X), quantised(X))
    assert net.report.total_macs == dggraph.convert(model, X).report.total_macs
    with pytest.raises(InputError, match=r"head\.2\._packed_params.*before it is quantised"):
        dggraph.save(net, tmp_path / "net")


def test_quantised_products_by_hand() -> None:
    flops = FLOPS_OF_QUANTISED[torch.ops.aten._int_mm]
    assert flops((6, 7), (7, 5), out_shape=(6, 5)) == 2 * 6 * 5 * 7


@QUANTISES
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_features_are_not_routed_and_said() -> None:
    from torch.ao import quantization

    model = nn.Sequential(
        quantization.QuantStub(),
        *(nn.Conv2d(3, 3, 1) for _ in range(3)),
        quantization.DeQuantStub(),
    ).eval()
    model.qconfig = quantization.get_default_qconfig("qnnpack")  # type: ignore[assignment]
    prepared = quantization.prepare(model)
    prepared(X)
    torch.backends.quantized.engine = "qnnpack"
    with pytest.raises(NothingToRouteError, match=r"torch\.quint8, and gates only weigh real"):
        dggraph.convert(quantization.convert(prepared), X)


class Latent(Net):
    """Its head asks by a parameter, which a layer gets as a view; as a layer of its own,
    `nn.MultiheadAttention`, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.linspace(0, 1, 8).reshape(1, 1, 8))
        self.query = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.features(x).flatten(2).transpose(1, 2)
        asked = self.query(self.latent.expand(x.shape[0], -1, -1))
        logits: Tensor = self.attention(asked, tokens, tokens, need_weights=False)[0].squeeze(1)
        return logits


def test_layers_may_get_views_of_parameters() -> None:
    backbone = Latent().eval()
    net = dggraph.convert(backbone, X[:1])
    assert torch.equal(net(X), backbone(X))
    assert net.latent.requires_grad
    assert net.report.total_macs >= 2 * 8 * 8


def norms(channels: int = 4) -> nn.Sequential:
    odd = nn.BatchNorm2d(4)
    odd.register_forward_hook(lambda _module, _args, output: output[:, :, ::2])
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(channels), odd, nn.Flatten(2), nn.BatchNorm1d(4)
    ).eval()


def test_norms_keep_shapes_unless_a_hook_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not called on fake tensors; the result is that of calling them."""
    model, x = norms(), torch.rand(1, 3, 8, 8)
    graph = fx.Tracer().trace(model)
    found = profiling.profile(model, graph, x)
    assert found.shapes["_4"] == (2, 4, 18)
    monkeypatch.setattr(profiling, "_is_plain_norm", lambda _module: False)
    assert found == profiling.profile(model, graph, x)


def test_norms_of_another_width_are_told() -> None:
    model = norms(channels=5)
    with pytest.raises(InputError, match="cannot run on an input of shape"):
        profiling.profile(model, fx.Tracer().trace(model), torch.rand(1, 3, 8, 8))
