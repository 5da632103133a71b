"""Folders to share: they load with equal outputs, whatever names say stays text, and only the hub
needs the hub's package.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from markup import HOSTILE
from PIL import Image
from toy_data import plain_net

import dggraph
from dggraph.baselines.network import BaselineNetwork
from dggraph.errors import ArchiveError, DownloadError, InputError, MissingExtraError
from dggraph.network import publishing
from dggraph.network.network import DynamicNetwork
from dggraph.training import TrainingResults
from dggraph.views.model_card import MARK, for_markdown

RESULTS = TrainingResults(
    command="dggraph train --dataset flowers",
    dataset="flowers",
    num_training=80,
    num_validation=100,
    seeds=(3,),
    measure="accuracy",
    scores=(0.9,),
    kept=(0.7,),
    versions={"torch": "2.14"},
    remarks=("Budget missed.",),
)


@pytest.fixture(scope="module")
def net() -> DynamicNetwork:
    torch.manual_seed(0)
    made = dggraph.convert("dggraph:resnet8_4", torch.zeros(1, 3, 16, 16)).eval()
    made.labels = tuple(f"class {number}" for number in range(10))
    return made


def card(net: DynamicNetwork | BaselineNetwork, folder: Path, **given: Any) -> str:
    net.save_pretrained(folder / "net", **given)
    return (folder / "net" / "README.md").read_text()


def test_a_saved_folder_loads_with_equal_outputs(net: DynamicNetwork, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path / "shared")
    names = {"README.md", "config.json", "graph.json", "graph.svg", "manifest.json"}
    assert {file.name for file in (tmp_path / "shared").iterdir()} == names | {"model.safetensors"}
    found = dggraph.from_pretrained(tmp_path / "shared")
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(found(x), net(x))
    assert found.labels == net.labels
    assert torch.equal(dggraph.load(tmp_path / "shared")(x), net(x)), "it is an archive"
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["library_name"] == "dggraph"
    assert config["model"] == "dggraph:resnet8_4"


def test_a_bare_module_needs_its_backbone_again(tmp_path: Path) -> None:
    made = dggraph.convert(plain_net(), torch.zeros(1, 3, 16, 16)).eval()
    assert "model=backbone" in card(made, tmp_path / "own")
    with pytest.raises(ArchiveError, match="model="):
        dggraph.from_pretrained(tmp_path / "own" / "net")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(dggraph.from_pretrained(tmp_path / "own" / "net", plain_net())(x), made(x))


def test_the_card_says_what_was_measured_and_how_sure_it_is(
    net: DynamicNetwork, tmp_path: Path
) -> None:
    one = card(net, tmp_path, results=RESULTS, license="apache-2.0")
    front = one.split("---")[1]
    assert 'license: "apache-2.0"' in front
    assert "value: 0.9000" in front
    for part in (
        "| 3 | 90.00 % | 70.00 % |",
        "One seed",
        "± 5.88 points (95 %)",
        "Trained on a set of 80 images",
        "```bash\ndggraph train --dataset flowers\n```",
        "**Budget missed\\.**",
        "![Its stages, blocks and candidate edges](graph.svg)",
        "Classes: class 0, class 1",
    ):
        assert part in one
    more = replace(RESULTS, seeds=(0, 1, 2), scores=(0.8, 0.9, 1.0), kept=(0.7, 0.7, 0.7))
    several = card(net, tmp_path, results=more)
    assert "over 3 seeds: accuracy 90.00 % ± 10.00" in several
    assert "license" not in several.split("---")[1]
    assert "Not stated" in several


def test_a_card_without_results_claims_none(net: DynamicNetwork, tmp_path: Path) -> None:
    text = card(net, tmp_path)
    assert "Not measured" in text
    assert "model-index" not in text
    assert "The weights are random" in text


@pytest.mark.parametrize(
    "name",
    [*HOSTILE, "a\n---\nlicense: mit", "| x | [a](javascript:b) `c` ``` @d www.e.f", "x" * 9999],
)
def test_names_stay_text(net: DynamicNetwork, tmp_path: Path, name: str) -> None:
    results = replace(RESULTS, command=f"dggraph train {name}", dataset=name, remarks=(name,))
    made = dggraph.convert("dggraph:resnet8_4", torch.zeros(1, 3, 16, 16))
    made.labels = (name, *(f"{number}" for number in range(9)))
    text = card(made, tmp_path, results=results, license=name)
    _, front, body = text.split("\n---\n" if not text.startswith("---\n") else "---\n", 2)
    values = [line.partition(": ")[2] for line in front.splitlines() if line.startswith("license")]
    assert len(values) == 1
    assert json.loads(values[0])
    fences = [line for line in body.splitlines() if line.lstrip().startswith("```")]
    assert len(fences) % 2 == 0
    outside = [
        line for line in body.splitlines() if line != MARK and not line.startswith("dggraph train")
    ]
    for sign in ("<script", "<img", "[a](", "javascript:b)"):
        assert not any(sign in line for line in outside)
    assert all(len(line) < 4000 for line in outside)


def test_a_network_of_a_method_is_shared_in_the_same_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = dggraph.baselines.squeeze_excitation("dggraph:resnet8_4", reduction=4).eval()
    made.save_pretrained(tmp_path / "shared", results=replace(RESULTS, kept=()))
    names = {"README.md", "config.json", "manifest.json", "model.safetensors"}
    assert {file.name for file in (tmp_path / "shared").iterdir()} == names
    found = dggraph.from_pretrained(tmp_path / "shared")
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found(x), made(x))
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["method"] == "squeeze_excitation"
    assert config["options"] == {"reduction": 4}
    text = (tmp_path / "shared" / "README.md").read_text()
    assert "with squeeze\\_excitation" in text
    assert "squeeze\\_excitation\\(reduction\\=4\\)" in text
    assert "| 3 | 90.00 % |" in text
    for absent in ("MACs ratio", "graph.svg", "Routers", "explain"):
        assert absent not in text


def test_what_a_card_tells_one_to_run_runs(net: DynamicNetwork, tmp_path: Path) -> None:
    method = dggraph.baselines.squeeze_excitation("dggraph:resnet8_4", reduction=4).eval()
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (40, 30)).save(photo)
    for number, made in enumerate((net, method)):
        text = card(made, tmp_path / str(number))
        code = text.split("```python\n")[1].split("```")[0]
        place = tmp_path / str(number) / "net"
        code = code.replace("FOLDER or OWNER/NAME", str(place)).replace("photo.jpg", str(photo))
        names: dict[str, Any] = {"torch": torch}
        exec(code, names)
        assert type(names["net"]) is type(made)


def test_every_sign_of_markup_is_escaped() -> None:
    assert for_markdown("a|b*_<c>`[d](e)#\n&f;") == (
        "a\\|b\\*\\_&lt;c&gt;\\`\\[d\\]\\(e\\)\\#\N{REPLACEMENT CHARACTER}&amp;f\\;"
    )


def test_an_edited_card_stays_and_a_generated_one_is_replaced(
    net: DynamicNetwork, tmp_path: Path
) -> None:
    first = card(net, tmp_path)
    assert card(net, tmp_path, results=RESULTS) != first
    mine = first.replace(MARK, "") + "\nMy words.\n"
    (tmp_path / "net" / "README.md").write_text(mine)
    assert card(net, tmp_path, results=RESULTS) == mine
    x = torch.ones(1, 3, 16, 16)
    assert torch.equal(dggraph.from_pretrained(tmp_path / "net")(x), net(x))


def test_a_foreign_folder_is_refused_untouched(net: DynamicNetwork, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArchiveError, match="not a dggraph archive"):
        net.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_the_network_of_the_package_is_loaded_by_name() -> None:
    assert len(dggraph.from_pretrained("fashion_mnist").labels) == 10


@pytest.mark.parametrize("name", ["nowhere", "../a/b", "a/b/c", "/no/such", "", "a b/c"])
def test_what_is_no_place_is_told(name: str) -> None:
    with pytest.raises(InputError, match="neither a network of this package"):
        dggraph.from_pretrained(name)


def test_without_the_hub_package_the_error_names_it(
    net: DynamicNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"no folder 'me/net'.*dggraph\[hub\]"):
        dggraph.from_pretrained("me/net")
    method = dggraph.baselines.squeeze_excitation("dggraph:resnet8_4", reduction=4)
    for made in (net, method):
        with pytest.raises(MissingExtraError, match=r"pushing to 'me/net' needs huggingface_hub"):
            made.push_to_hub("me/net")


def test_pushed_and_fetched_through_the_hub_package_alone(
    net: DynamicNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package, which keeps a folder."""
    asked: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None) -> None:
            asked["token"] = token

        def create_repo(self, repo_id: str, **keys: Any) -> Any:
            asked["created"] = keys
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **keys: Any) -> Any:
            Path(folder_path).rename(tmp_path / "hub")
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    def snapshot_download(repo_id: str, **keys: Any) -> str:
        asked["fetched"] = keys
        if repo_id != "me/net":
            raise OSError("404")
        return str(tmp_path / "hub")

    stand_in = SimpleNamespace(HfApi=Api, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    assert net.push_to_hub("me/net", token="t", private=True) == "https://hub/me/net"
    assert asked["created"] == {"private": True, "exist_ok": True}
    found = dggraph.from_pretrained("me/net", revision="v1")
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(found(x), net(x))
    assert asked["fetched"]["revision"] == "v1"
    assert set(asked["fetched"]["allow_patterns"]) == {
        "graph.json",
        "manifest.json",
        "model.safetensors",
    }
    with pytest.raises(DownloadError, match=r"'me/other'.*404"):
        dggraph.from_pretrained("me/other")
    with pytest.raises(DownloadError, match="did not take 'me/net'"):
        net.push_to_hub("me/net")  # the folder is there, so the stand-in fails


def test_the_real_package_has_what_is_called() -> None:
    hub = pytest.importorskip("huggingface_hub", reason="its signatures are compared")
    import inspect

    for function, names in (
        (hub.HfApi.create_repo, {"repo_id", "private", "exist_ok"}),
        (hub.HfApi.upload_folder, {"repo_id", "folder_path", "revision", "commit_message"}),
        (hub.snapshot_download, {"repo_id", "revision", "token", "library_name", "allow_patterns"}),
    ):
        assert names <= inspect.signature(function).parameters.keys()
    ours = inspect.signature(publishing.push_to_hub).parameters.keys()
    assert {"repo_id", "private", "token", "commit_message"} <= ours


def test_a_file_in_the_way_and_a_relative_path_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArchiveError, match="file"):
        dggraph.from_pretrained("fashion_mnist").save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(InputError, match=r"no folder '\./nothing'"):  # not asked of the hub
        dggraph.from_pretrained("./nothing")
