"""Archives: what comes back is what went in; what is damaged, foreign or hostile is refused, and nothing is half-written."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
import torchvision
from PIL import Image
from reference import randomise, randomise_routers
from torch import nn

import dggraph
from dggraph.errors import ArchiveError
from dggraph.runtime import archive as archive_module
from dggraph.runtime.manifest import Manifest, seal
from dggraph.runtime.models import load_model
from dggraph.runtime.preprocessing import Preprocess, preprocess_image

LABELS = ["<b>", "[/b]", *(f"class {number}" for number in range(2, 1000))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> tuple[nn.Module, Path]:
    model = randomise(load_model("shufflenet_v2_x0_5").model)
    net = dggraph.convert(model, torch.rand(1, 3, 64, 64), wiring="window(3)", router="stage", threshold=0.25)
    net.source = "shufflenet_v2_x0_5"
    randomise_routers(net)
    folder = tmp_path_factory.mktemp("made") / "archive"
    dggraph.save(net, folder, preprocess=Preprocess(input_size=(3, 64, 64)), labels=LABELS)
    return net.eval(), folder


def rewrite(folder: Path, change: dict[str, Any]) -> None:
    """Change the manifest as somebody would who knows the format: with a digest that fits."""
    file = folder / "manifest.json"
    document = json.loads(file.read_text()) | change
    with contextlib.suppress(ValueError):  # fields that no manifest may have are refused before the digest is looked at
        document = seal(Manifest.model_validate_json(json.dumps(document))).model_dump()
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
    assert twin.graph == net.graph and twin.labels == tuple(LABELS) and twin.preprocess == Preprocess(input_size=(3, 64, 64))
    assert {file.name for file in folder.iterdir()} == {"graph.json", "model.safetensors", "manifest.json"}


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
        (folder / name).write_bytes({"truncate": content[:-9], "empty": b""}.get(damage, bytes(content)))
    with pytest.raises(ArchiveError, match=name.split(".")[0] if damage != "remove" else "archive|missing"):
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
        ({"schema_version": 99}, "upgrade dggraph"),
        ({"source": "os:system"}, "os:system"),
        ({"source": "../../etc/passwd"}, "no model"),
        ({"source": "timm:../x"}, "no model"),
        ({"source": "resnet51"}, "Did you mean"),
        ({"router": "evil"}, "router 'evil'"),
        ({"fingerprint": "0" * 64}, "another structure"),
        ({"extra": 1}, "extra"),
        ({"sha256": {"../graph.json": "0"}}, "missing or not what"),
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
    with pytest.raises(ArchiveError, match="no dggraph archive"):
        dggraph.save(made[0], tmp_path / "thesis")
    assert (tmp_path / "thesis" / "draft.txt").read_text() == "years"


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_failed_write_leaves_the_old_archive(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    folder = copy_of(made[1], tmp_path / "a")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    calls, write = [], archive_module._write

    def failing(file: Path, content: bytes) -> None:
        calls.append(file)
        if len(calls) == step + 1:
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(archive_module, "_write", failing)
    with pytest.raises(ArchiveError, match="No space left"):
        dggraph.save(made[0], folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
