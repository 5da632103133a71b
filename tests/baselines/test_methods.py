"""What holds of every method: the backbone's keys, gradients, rows, copies, archives, MACs."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dggraph
from dggraph.baselines import BASELINES, BaselineNetwork
from dggraph.baselines.registry import make_baseline, read_method
from dggraph.errors import ArchiveError, InputError, NothingToRouteError
from dggraph.models.registry import load_model
from dggraph.network.manifest import MethodManifest, seal

X = torch.linspace(-1, 1, 3 * 3 * 16 * 16).reshape(3, 3, 16, 16).sin()
EXAMPLE = torch.zeros(1, 3, 16, 16)
NAMES = sorted({*BASELINES} - {"static_edges"})  # that is a converted network

pytestmark = pytest.mark.cpu


def backbone() -> nn.Module:
    torch.manual_seed(0)
    model = load_model("dggraph:resnet14_4").model
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return model


def build(name: str, model: nn.Module | None = None, **options: Any) -> BaselineNetwork:
    torch.manual_seed(1)
    return BASELINES[name](backbone() if model is None else model, EXAMPLE, **options)


def moved(net: BaselineNetwork) -> BaselineNetwork:
    """With weights as after some training: nothing that was zero or equal stays so."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_keys_of_the_backbone_stay_and_new_ones_have_one_prefix(name: str) -> None:
    model = backbone()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    net = build(name, model)
    state = net.state_dict()
    assert {key for key in state if not key.startswith("dg_method.")} == set(before)
    assert all(torch.equal(state[key], tensor) for key, tensor in before.items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert net.report.changed
    assert "starts as the backbone" in str(net.report)


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_backbone_where_it_says_so(name: str) -> None:
    model = backbone()
    net = build(name, model)
    with torch.no_grad():
        expected = model(X)
        difference = float((net(X) - expected).abs().max())
    assert (difference == 0) == (net.report.exactness == "to the bit")
    if net.report.exactness == "up to rounding":
        assert difference <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient_and_the_loss_falls(name: str) -> None:
    net = build(name).train()
    torch.manual_seed(0)
    x, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(20):
        net.anneal_(step / 20)
        output, values = net(x, return_values=True)
        own = net.auxiliary_loss(values)
        loss = nn.functional.cross_entropy(output, labels)
        (loss if own is None else loss + own).backward()
        if step == 1:  # zero-initialised last layers hide the first ones at step 0
            missing = [key for key, parameter in net.named_parameters() if parameter.grad is None]
            assert missing == []
            assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    net = moved(build(name)).double().eval()
    x = X.double()
    with torch.no_grad():
        together = net(x)
        alone = torch.cat([net(image[None]) for image in x])
        macs = net.macs(x)
    assert float((together - alone).abs().max()) <= 1e-12 * float(together.abs().max())
    assert macs.shape == (3,)
    assert macs.dtype == torch.float64
    assert torch.equal(macs, torch.cat([net.macs(image[None]) for image in x]))


@pytest.mark.parametrize("name", NAMES)
def test_copies_do_not_share_anything(name: str) -> None:
    net = moved(build(name)).eval()
    with torch.no_grad():
        expected = net(X)
        twin = copy.deepcopy(net)
        assert torch.equal(twin(X), expected)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(net(X), expected)
        assert not torch.equal(twin(X), expected)
    assert (twin.method, twin.options, twin.report) == (net.method, net.options, net.report)


@pytest.mark.parametrize("name", NAMES)
def test_an_archive_gives_it_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    loaded = load_model("dggraph:resnet14_4", num_classes=7)
    net = moved(BASELINES[name](loaded, EXAMPLE)).eval()
    next(iter(net.parameters())).requires_grad_(False)
    labels = [f"class {number}" for number in range(7)]
    dggraph.save(net, tmp_path / "archive", labels=labels)
    again = dggraph.load(tmp_path / "archive")
    assert isinstance(again, type(net))
    assert (again.method, again.options) == (name, net.options)
    assert again.labels == tuple(labels)
    assert again.preprocess == net.preprocess
    assert again.weights_origin == "given by the caller"
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in net.parameters()
    ]
    with torch.no_grad():
        assert torch.equal(again(X), net(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_compiled_whole_it_is_the_same(name: str) -> None:
    net = moved(build(name)).eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        expected = net(X)
        assert float((compiled(X) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_an_archive_of_a_bare_module_needs_that_module(tmp_path: Path) -> None:
    model = backbone()
    net = build("squeeze_excitation", model, reduction=2).eval()
    dggraph.save(net, tmp_path / "archive")
    with pytest.raises(ArchiveError, match="from a bare module"):
        dggraph.load(tmp_path / "archive")
    with pytest.raises(ArchiveError, match="made from another backbone"):
        dggraph.load(tmp_path / "archive", load_model("dggraph:resnet20_4").model)
    again = dggraph.load(tmp_path / "archive", model)
    with torch.no_grad():
        assert torch.equal(again(X), net(X))


def test_an_archive_with_another_head_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    net = BASELINES["squeeze_excitation"]("dggraph:resnet14_4", EXAMPLE)
    net.fc = nn.Linear(16, 3)
    with pytest.raises(ArchiveError, match=r"rebuilds fc\.bias as \(10,\).*holds \(3,\)"):
        dggraph.save(net, tmp_path / "archive")
    net.source_options = {"num_classes": 3}
    dggraph.save(net, tmp_path / "archive")
    assert dggraph.load(tmp_path / "archive")(X).shape == (3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_head_of_layers_is_for_the_backbone(name: str, tmp_path: Path) -> None:
    def with_head(model: nn.Module) -> Any:
        model.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 3))
        return model.eval()

    late = with_head(build(name))
    with pytest.raises(InputError, match=rf"fc was replaced after {name} was applied"):
        dggraph.save(late, tmp_path / "archive")
    net = build(name, with_head(backbone())).eval()
    dggraph.save(net, tmp_path / "archive")
    with torch.no_grad():
        assert torch.equal(dggraph.load(tmp_path / "archive", with_head(backbone()))(X), net(X))


def rewrite(folder: Path, **change: Any) -> None:
    file = folder / "manifest.json"
    document = json.loads(file.read_text()) | change
    sealed = seal(MethodManifest.model_validate_json(json.dumps(document)))
    file.write_text(sealed.model_dump_json())


def test_archives_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    dggraph.save(BASELINES["squeeze_excitation"]("dggraph:resnet14_4", EXAMPLE), folder)
    with pytest.raises(ArchiveError, match="of the method 'squeeze_excitation', which has no"):
        dggraph.network.archive.load(folder)
    rewrite(folder, options={"reductoin": 4})
    with pytest.raises(ArchiveError, match=r"cannot be rebuilt: .*reductoin"):
        dggraph.load(folder)
    rewrite(folder, options={}, method="squeeze")
    with pytest.raises(ArchiveError, match=r"needs the method 'squeeze'.*Upgrade"):
        dggraph.load(folder)
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | {"method": "cond_conv"}))
    with pytest.raises(ArchiveError, match="was changed after it was written"):
        dggraph.load(folder)
    (folder / "manifest.json").write_text(json.dumps(document | {"schema_version": 3}))
    with pytest.raises(ArchiveError, match=r"version 3.*up to 2.*upgrade"):
        dggraph.load(folder)


def test_a_method_of_ones_own_is_used_like_the_others() -> None:
    def shallow(model: Any, example_input: Any = None, *, factor: int = 1) -> BaselineNetwork:
        return BASELINES["squeeze_excitation"](model, example_input, reduction=factor)

    BASELINES["shallow"] = shallow
    try:
        net = make_baseline("shallow(factor=3)", backbone(), EXAMPLE)
        assert net.options == {"reduction": 3}
    finally:
        del BASELINES["shallow"]


def test_texts_that_name_no_method_say_what_does() -> None:
    with pytest.raises(InputError, match="Did you mean 'squeeze_excitation'"):
        read_method("squeeze_exitation")
    with pytest.raises(InputError, match=r"no option 'redaction'.*Did you mean 'reduction'"):
        read_method("squeeze_excitation(redaction=2)")
    with pytest.raises(InputError, match=r"reduction=x.: x must be a whole number"):
        read_method("squeeze_excitation(reduction=x)")
    with pytest.raises(InputError, match="'dynamic_graph' has no option 'k'"):
        read_method("dynamic_graph(k=1)")


def test_a_backbone_without_blocks_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    with pytest.raises(NothingToRouteError, match="squeeze_excitation changes the blocks"):
        build("squeeze_excitation", model)


def flops_over_two(net: BaselineNetwork, x: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_half_the_flops_that_torch_counts(name: str) -> None:
    net = build(name).eval()
    if name == "layer_skip":
        net.executor = "sparse"  # whose work it counts
    assert net.macs(X[:1]).tolist() == [flops_over_two(net, X[:1])]
