"""Archives: what comes back is what went in; what is damaged, foreign or hostile is refused, and
nothing is half-written.
"""

import contextlib
import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import skimage.data
import torch
import torchvision
from PIL import Image
from reference import randomise, randomise_routers
from small import Block, Net, X
from torch import nn
from torch.nn.utils import prune
from torch.testing._internal.two_tensor import (
    TwoTensor,
)  # private: a tensor made of others, as quantised ones are

import dggraph
from dggraph.errors import ArchiveError, InputError
from dggraph.models.preprocessing import Preprocess, preprocess_image
from dggraph.models.registry import load_model
from dggraph.network import conversion
from dggraph.network.conversion import note_source_
from dggraph.network.manifest import Manifest, seal
from dggraph.system import files

pytestmark = pytest.mark.cpu

LABELS = ["<b>", "[/b]", *(f"class {number}" for number in range(2, 1000))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> tuple[nn.Module, Path]:
    model = randomise(load_model("shufflenet_v2_x0_5").model)
    net = dggraph.convert(
        model, torch.rand(1, 3, 64, 64), wiring="window(2)+entry", router="stage", threshold=0.25
    )
    net.source = "shufflenet_v2_x0_5"
    randomise_routers(net)
    folder = tmp_path_factory.mktemp("made") / "archive"
    dggraph.save(net, folder, preprocess=Preprocess(input_size=(3, 64, 64)), labels=LABELS)
    return net.eval(), folder


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    """Change the manifest as somebody would who knows the format: with a digest that fits."""
    file = folder / "manifest.json"
    document = json.loads(file.read_text()) | change
    with contextlib.suppress(
        ValueError
    ):  # fields that no manifest may have are refused before the digest is looked at
        sealed = seal(Manifest.model_validate_json(json.dumps(document)))
        document = sealed.model_dump(exclude_unset=True)
    file.write_text(json.dumps(document))


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_load_of_save(made: Any) -> None:
    net, folder = made
    twin = dggraph.load(folder)
    x = torch.randn(3, 3, 64, 64)
    assert torch.equal(net(x), twin(x))
    assert dggraph.record(net, x).paths == dggraph.record(twin, x).paths
    assert twin.graph == net.graph
    assert twin.labels == tuple(LABELS)
    assert twin.preprocess == Preprocess(input_size=(3, 64, 64))
    assert {file.name for file in folder.iterdir()} == {
        "graph.json",
        "model.safetensors",
        "manifest.json",
    }


@pytest.mark.parametrize("kind", ["mobilenet_v2", "densenet121", "googlenet", "swin_t"])
def test_lifted_concat_adapter_and_token_stages_come_back(kind: str, tmp_path: Path) -> None:
    net = randomise_routers(dggraph.convert(kind, torch.rand(1, 3, 64, 64))).eval()
    dggraph.save(net, tmp_path / "a")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(dggraph.load(tmp_path / "a")(x), net(x))


def test_bare_module_needs_the_module_and_keeps_ties(tmp_path: Path) -> None:
    model = randomise(torchvision.models.resnet18()).double().eval()
    model.layer1[1].conv2.weight = model.layer1[1].conv1.weight
    net = dggraph.convert(model, torch.rand(1, 3, 64, 64))
    dggraph.save(net, tmp_path / "a")
    with pytest.raises(ArchiveError, match="bare module"):
        dggraph.load(tmp_path / "a")
    with pytest.raises(ArchiveError, match="another structure"):
        dggraph.load(tmp_path / "a", model=torchvision.models.resnet34())
    twin = dggraph.load(tmp_path / "a", model=torchvision.models.resnet18())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(twin(x), model(x))


def test_the_real_checkpoint_keeps_its_answers(mobilenet_checkpoint: Path, tmp_path: Path) -> None:
    built = load_model("mobilenet_v2", checkpoint=mobilenet_checkpoint)
    net = dggraph.convert(built.model)
    net.source = "mobilenet_v2"
    dggraph.save(net, tmp_path / "a", preprocess=built.preprocess, labels=built.labels)
    twin = dggraph.load(tmp_path / "a")
    official = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    for name, answer in (("chelsea", "Egyptian cat"), ("coffee", "espresso")):
        image = Image.fromarray(getattr(skimage.data, name)())
        x = preprocess_image(image, twin.preprocess)
        assert torch.equal(x[0], official(image))
        with torch.no_grad():
            logits = twin(x)
            assert torch.equal(logits, built.model(x))
        assert twin.labels[int(logits.argmax())] == answer


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damage_is_one_clear_error(made: Any, tmp_path: Path, name: str, damage: str) -> None:
    folder = copy_of(made[1], tmp_path / "a")
    content = bytearray((folder / name).read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    if damage == "remove":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(
            {"truncate": content[:-9], "empty": b""}.get(damage, bytes(content))
        )
    with pytest.raises(
        ArchiveError, match=name.split(".")[0] if damage != "remove" else "archive|missing"
    ):
        dggraph.load(folder)


def test_any_flipped_bit_of_the_manifest_is_noticed(made: Any, tmp_path: Path) -> None:
    folder = copy_of(made[1], tmp_path / "a")
    content = (folder / "manifest.json").read_bytes()
    for bit in range(0, 8 * len(content), 8 * len(content) // 300 | 1):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / "manifest.json").write_bytes(flipped)
        with pytest.raises(ArchiveError, match=r"manifest|schema version"):
            dggraph.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "reads up to 1. To load it, upgrade dggraph"),
        ({"source": "os:system"}, "os:system"),
        ({"source": "../../etc/passwd"}, "no model"),
        ({"source": "timm:../x"}, "no model"),
        ({"source": "resnet51"}, "Did you mean"),
        ({"router": "evil"}, "router 'evil'"),
        ({"fingerprint": "0" * 64}, "another structure"),
        ({"extra": 1}, "extra"),
        ({"sha256": {"../graph.json": "0"}}, "missing or differs from the digest"),
        ({"num_classes": -1}, "num_classes"),
    ],
)
def test_hostile_manifests(made: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = copy_of(made[1], tmp_path / "a")
    rewrite(folder, change)
    with pytest.raises(ArchiveError, match=message):
        dggraph.load(folder)


def test_a_block_that_the_trace_does_not_have(made: Any, tmp_path: Path) -> None:
    folder = copy_of(made[1], tmp_path / "a")
    found = json.loads((folder / "manifest.json").read_text())["found"]
    found[0]["blocks"][0]["fx_nodes"][0] = "__import__('os').system('true')"
    rewrite(folder, {"found": found})
    with pytest.raises(ArchiveError, match="does not have"):
        dggraph.load(folder)


def test_save_never_overwrites_something_else(made: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.txt").write_text("years")
    with pytest.raises(ArchiveError, match="is not a dggraph archive"):
        dggraph.save(made[0], tmp_path / "thesis")
    assert (tmp_path / "thesis" / "draft.txt").read_text() == "years"


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_failed_write_leaves_the_old_archive(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = copy_of(made[1], tmp_path / "a")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    calls, write = [], files.write_synced

    def failing(file: Path, content: bytes) -> None:
        calls.append(file)
        if len(calls) == step + 1:
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(files, "write_synced", failing)
    with pytest.raises(ArchiveError, match="No space left"):
        dggraph.save(made[0], folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm:levit_128s", "timm:mobilenetv3_small_050"])
def test_another_number_of_classes_comes_back(name: str, tmp_path: Path) -> None:
    """Also where the classifier is not a linear layer at the end."""
    built = load_model(name, num_classes=7)
    shape = (3, 64, 64) if ":" not in name else built.preprocess.input_size
    net = dggraph.convert(built.model, torch.zeros(1, *shape))
    note_source_(net, built)
    dggraph.save(net, tmp_path / "a")
    twin = dggraph.load(tmp_path / "a")
    assert twin.source_options == {"num_classes": 7}
    assert twin.report == net.report
    x = torch.rand(1, *shape)
    assert torch.equal(twin(x), net.eval()(x))


def test_a_name_that_would_not_rebuild_the_network_is_refused(tmp_path: Path) -> None:
    net = dggraph.convert("resnet18", torch.rand(1, 3, 64, 64))
    net.lowered.fc, net.labels = nn.Linear(512, 7), None
    with pytest.raises(
        ArchiveError, match=r"rebuilds fc\.bias as \(1000,\), but the network holds \(7,\)"
    ):
        dggraph.save(net, tmp_path / "a")
    net.source_options = {"num_classes": 7}
    dggraph.save(net, tmp_path / "a")
    assert dggraph.load(tmp_path / "a")(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_leaves_are_found_again_among_the_backbone_s_own_classes(tmp_path: Path) -> None:
    net = dggraph.convert(Net(), X, leaves=(Block,))
    dggraph.save(net, tmp_path / "a")
    twin = dggraph.load(tmp_path / "a", model=Net())
    assert torch.equal(twin(X), net.eval()(X))
    assert twin.blueprint.leaves == ("small.Block",)
    rewrite(tmp_path / "a", {"leaves": ["subprocess.Popen"]})
    with pytest.raises(ArchiveError, match=r"it has no subprocess\.Popen"):
        dggraph.load(tmp_path / "a", model=Net())


FLOATS = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("converted", FLOATS)
@pytest.mark.parametrize("saved", FLOATS)
@pytest.mark.parametrize("given", FLOATS)
def test_types_are_the_archive_s_and_the_model_is_left_alone(
    tmp_path: Path, converted: torch.dtype, saved: torch.dtype, given: torch.dtype
) -> None:
    net = dggraph.convert(Net().to(converted), X.to(converted)).to(saved).eval()
    for stage in net.graph.stages:
        net.lowered.get_submodule(f"dg_{stage}").float()
    dggraph.save(net, tmp_path / "a")
    model = Net().to(given)
    twin = dggraph.load(tmp_path / "a", model=model)
    assert {parameter.dtype for parameter in model.parameters()} == {given}
    assert model.training
    for ours, theirs in (
        (net.named_parameters(), twin.named_parameters()),
        (net.named_buffers(), twin.named_buffers()),
    ):
        assert {key: value.dtype for key, value in ours} == {
            key: value.dtype for key, value in theirs
        }
    assert torch.equal(twin(X.to(saved)), net(X.to(saved)))


def test_mixed_types_come_back(tmp_path: Path) -> None:
    net = dggraph.convert(Net(), X)
    net.lowered.head[2].double()
    dggraph.save(net, tmp_path / "a")
    twin = dggraph.load(tmp_path / "a", model=Net())
    assert twin.lowered.head[2].weight.dtype == torch.float64
    assert twin.lowered.stem.weight.dtype == torch.float32


@pytest.mark.parametrize("stages", [None, {"some": ["blocks.0", "blocks.1"]}])
@pytest.mark.parametrize("residual", ["auto", "keep"])
def test_reports_and_flags_come_back(tmp_path: Path, stages: Any, residual: Any) -> None:
    net = dggraph.convert(Net(), X, stages=stages, residual=residual)
    net.lowered.stem.requires_grad_(False)
    dggraph.save(net, tmp_path / "a")
    twin = dggraph.load(tmp_path / "a", model=Net())
    assert twin.report == net.report
    assert twin.blueprint == replace(net.blueprint, found=twin.blueprint.found)
    flags = {key: parameter.requires_grad for key, parameter in net.named_parameters()}
    assert flags == {key: parameter.requires_grad for key, parameter in twin.named_parameters()}


def test_several_lifted_residuals_keep_their_measured_difference(tmp_path: Path) -> None:
    net = dggraph.convert(
        randomise(torchvision.models.swin_t()), torch.rand(1, 3, 64, 64), residual="lift"
    )
    dggraph.save(net, tmp_path / "a")
    twin = dggraph.load(tmp_path / "a", model=torchvision.models.swin_t())
    assert twin.report == net.report
    assert net.report.max_difference > 0


def test_a_link_keeps_pointing_at_what_is_written(tmp_path: Path) -> None:
    net = dggraph.convert(Net(), X)
    dggraph.save(net, tmp_path / "first")
    (tmp_path / "current").symlink_to("first")
    before = (tmp_path / "first" / "manifest.json").read_bytes()
    net.lowered.stem.requires_grad_(False)
    dggraph.save(net, tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "first" / "manifest.json").read_bytes() != before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["current", "first"]


@pytest.mark.parametrize("labels", ["cat", [1, 2, 3, 4, 5], ["a"], {"a", "b"}, 5])
def test_labels_are_one_name_an_output(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(InputError, match="label"):
        dggraph.save(dggraph.convert(Net(), X), tmp_path / "a", labels=labels)
    assert not (tmp_path / "a").exists()


def test_only_converted_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes a converted network, not Net"):
        dggraph.save(Net(), tmp_path / "a")  # type: ignore[arg-type]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    dggraph.save(dggraph.convert(Net(), X, residual="keep"), tmp_path / "a")
    return tmp_path / "a"


def test_folders_above_an_archive_are_made(tmp_path: Path) -> None:
    net = dggraph.convert(Net(), X)
    dggraph.save(net, tmp_path / "one" / "two" / "archive")
    assert dggraph.load(tmp_path / "one" / "two" / "archive", model=Net()).graph == net.graph


def _reverse(found: list[dict[str, Any]]) -> None:
    found[0]["blocks"].reverse()


def _same_ops(found: list[dict[str, Any]]) -> None:
    found[0]["blocks"][0]["fx_nodes"] = found[0]["blocks"][1]["fx_nodes"]


def _late_entry(found: list[dict[str, Any]]) -> None:
    found[0]["entry"] = found[0]["blocks"][1]["output"]


@pytest.mark.parametrize("edit", [_reverse, _same_ops, _late_entry, lambda found: found.clear()])
def test_a_resealed_manifest_must_still_describe_the_backbone(small: Path, edit: Any) -> None:
    found = json.loads((small / "manifest.json").read_text())["found"]
    edit(found)
    rewrite(small, {"found": found})
    with pytest.raises(ArchiveError, match=r"does not describe its backbone|do not describe one"):
        dggraph.load(small, model=Net())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 0}, "schema_version: .* greater than or equal to 1"),
        ({"schema_version": -3}, "schema_version: .* greater than or equal to 1"),
        ({"input_shape": []}, "input_shape: .* at least 3 items"),
        ({"input_shape": [3, 5, 5, 5]}, "input_shape: .* at most 3 items"),
        ({"input_shape": [4, 16, 16]}, r"cannot run on an input of shape \(2, 4, 16, 16\)"),
        ({"input_shape": [3, 65536, 65536]}, "input_shape: .* more than 67108864 elements"),
        ({"input_shape": [3, 0, 16]}, r"input_shape\.1: .* greater than or equal to 1"),
        ({"dtype": "int8"}, "dtype: .* 'float16'"),
    ],
)
def test_impossible_manifests(small: Path, change: dict[str, Any], message: str) -> None:
    rewrite(small, change)
    with pytest.raises(ArchiveError, match=message):
        dggraph.load(small, model=Net())


@pytest.mark.parametrize("other", [torch.int64, torch.bool, torch.complex64])
def test_a_weight_of_another_kind_is_refused(small: Path, other: torch.dtype) -> None:
    file = small / "model.safetensors"
    state = safetensors.torch.load_file(file)
    safetensors.torch.save_file(state | {"stem.bias": state["stem.bias"].to(other)}, file)
    digests = json.loads((small / "manifest.json").read_text())["sha256"]
    rewrite(small, {"sha256": digests | {file.name: files.sha256_of(file)}})
    with pytest.raises(ArchiveError, match=rf"holds stem\.bias as {other}"):
        dggraph.load(small, model=Net())


def _pruned(net: Any) -> None:
    prune.l1_unstructured(net.lowered.blocks[0].conv1, "weight", 0.5)


def _normed(net: Any) -> None:
    nn.utils.spectral_norm(net.lowered.stem)


def _adapted(net: Any) -> None:
    net.dg_blocks.router_0 = nn.Sequential(net.dg_blocks.router_0)


def _wrapped(net: Any) -> None:
    net.lowered.head[2].weight = nn.Parameter(TwoTensor(torch.ones(5, 8), torch.ones(5, 8)))


def _sparse(net: Any) -> None:
    net.lowered.register_buffer("table", torch.eye(3).to_sparse())


def _emptied(net: Any) -> None:
    net.lowered.head.to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_pruned, r"blocks\.0\.conv1\.weight is computed.*L1Unstructured.*prune\.remove"),
        (_normed, r"stem\.weight is computed.*SpectralNorm.*remove_spectral_norm"),
        (_adapted, r"dg_blocks\.router_0 is .*Sequential and was .*LinearRouter.*register_router"),
        (_wrapped, r"head\.2\.weight is TwoTensor.*before it is quantised"),
        (_sparse, r"table is stored as torch\.sparse_coo"),
        (_emptied, r"head\.2\.weight is on the meta device"),
    ],
)
def test_weights_that_would_not_come_back_are_refused(
    tmp_path: Path, change: Any, message: str
) -> None:
    net = dggraph.convert(Net(), X)
    change(net)
    with pytest.raises(InputError, match=message):
        dggraph.save(net, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_pruned_network_is_saved_once_its_zeros_are_permanent(tmp_path: Path) -> None:
    net = dggraph.convert(Net(), X)
    _pruned(net)
    prune.remove(net.lowered.blocks[0].conv1, "weight")
    dggraph.save(net, tmp_path / "net")
    weight = dggraph.load(tmp_path / "net", model=Net()).lowered.get_parameter(
        "blocks.0.conv1.weight"
    )
    assert int((weight == 0).sum()) == weight.numel() // 2


class ListsParts(nn.Module):
    """What could not be traced before questions were answered."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = list(torch.cat([x, x], 1).chunk(2, 1))
        for inner in self.inner:
            first = inner(first)
        return first + second


def test_archives_from_before_there_were_answers_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a trace has the module as one call; today's goes into it."""
    model = Net(ListsParts, depth=3).eval()
    answering = conversion.trace
    monkeypatch.setattr(
        conversion, "trace", lambda model, leaves, example: answering(model, leaves)
    )
    before = dggraph.convert(model, X).eval()
    monkeypatch.undo()
    assert [part.name for part in before.report.opaque] == ["ListsParts"]
    assert not dggraph.convert(model, X).report.opaque
    dggraph.save(before, tmp_path / "net")
    net = dggraph.load(tmp_path / "net", model=Net(ListsParts, depth=3))
    assert torch.equal(net(X), before(X))
    assert net.report.opaque == before.report.opaque


KILLED_SAVES = """
import os, signal, sys, warnings
import torch
from small import Net, X
import dggraph

torch.manual_seed(0)
old, new = (dggraph.convert(Net().eval(), X) for _ in range(2))
folder, expected = sys.argv[1], [net(X) for net in (old, new)]
dggraph.save(old, folder)

def killing(real):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

def killed_save(step):
    warnings.simplefilter("ignore")  # of forking after threads: this child only writes files
    child = os.fork()
    if child == 0:
        left[0] = step
        for name in ("rename", "replace", "rmdir"):
            setattr(os, name, killing(getattr(os, name)))
        dggraph.save(new, folder)
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL

left, which = [0], []
for step in range(1, 6):
    assert killed_save(step)
    answer = dggraph.load(folder, Net())(X)
    which.append([torch.equal(answer, one) for one in expected].index(True))
    dggraph.save(old, folder)  # ends what the killed one began
    assert torch.equal(dggraph.load(folder, Net())(X), expected[0]) and len(os.listdir(folder)) == 3
assert which == [0, 1, 1, 1, 1], which
"""
"""Replaces an archive in processes that kill themselves before each rename."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of the process at each step")
def test_a_killed_save_leaves_the_old_archive_or_the_new_one(tmp_path: Path) -> None:
    code = [sys.executable, "-W", "error", "-c", KILLED_SAVES, str(tmp_path / "archive")]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "helpers")}
    done = subprocess.run(code, env={**os.environ, **own}, check=False)
    assert done.returncode == 0


def test_saving_neither_runs_the_network_nor_builds_its_backbone_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its head was replaced, which only a pass can tell the outputs of."""

    def built_again(*_args: Any) -> Any:
        raise AssertionError("save built the backbone again")

    monkeypatch.setattr("dggraph.network.archive_checks.build_shapes", built_again)
    net, passes = dggraph.convert("dggraph:resnet20_8"), list[str]()
    net.fc.register_forward_hook(lambda *_args: passes.append("fc"))
    dggraph.save(net, tmp_path / "a", labels=[f"{k}" for k in range(10)])
    dggraph.save(copy.deepcopy(net), tmp_path / "b")
    dggraph.save(dggraph.load(tmp_path / "a"), tmp_path / "c")
    with pytest.raises(InputError, match="3 labels for 10 outputs"):
        dggraph.save(net, tmp_path / "d", labels=["cat", "dog", "cow"])
    assert not passes
    net.fc, net.source = nn.Linear(net.fc.in_features, 3), None
    net.fc.register_forward_hook(lambda *_args: passes.append("new fc"))
    dggraph.save(net, tmp_path / "d", labels=["cat", "dog", "cow"])
    with pytest.raises(InputError, match="10 labels for 3 outputs"):
        dggraph.save(net, tmp_path / "d", labels=[f"{k}" for k in range(10)])
    assert passes == ["new fc", "new fc"]
