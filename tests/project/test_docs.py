"""The documentation runs as printed: every Python block and every command, page by page, in a
folder with small stand-ins for photographs, data sets and checkpoints. Weights that a page would
download are random. `torchrun` lines run as one process; `test_torchrun` starts several.
"""

import ast
import dataclasses
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from pages import (
    INLINE,
    ROOT,
    check_arguments,
    check_command,
    check_names,
    commands,
    read_blocks,
    run_page,
)
from PIL import Image
from torchvision.models import WeightsEnum
from toy_boxes import write_coco

import dggraph
from dggraph.cli.main import COMMANDS
from dggraph.graph.wiring import WIRINGS
from dggraph.network.report import ConversionReport
from dggraph.ops.gating import GATES
from dggraph.ops.routing import ROUTERS

PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if page.parent.name != "tables"
)


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages' commands read, much smaller than a reader's own."""
    folder = tmp_path_factory.mktemp("stand_ins")
    photos = {
        name: Image.fromarray(getattr(skimage.data, source)()).resize((160, 120))
        for name, source in {
            "cat": "chelsea",
            "coffee": "coffee",
            "person": "astronaut",
            "rocket": "rocket",
        }.items()
    }
    (folder / "photos").mkdir()
    for name, photo in photos.items():
        photo.save(folder / f"photos/{name}.jpg")
        photo.save(folder / f"{name}.jpg")
    for part, count in (("train", 4), ("val", 2)):
        for label, photo in zip(("daisy", "rose"), photos.values(), strict=False):
            for index in range(count):
                crop = photo.crop((8 * index, 4 * index, 8 * index + 64, 4 * index + 64))
                for place in (f"flowers/{part}/{label}", f"unlabelled/{part}"):
                    (folder / place).mkdir(parents=True, exist_ok=True)
                    crop.save(folder / place / f"{label}-{index}.png")
    write_mnist(folder / "fashion-mnist")
    write_coco(folder / "coco", num_train=4, num_val=2)
    for name in ("mobilenet_v2", "resnet18"):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None)
        torch.save(model.state_dict(), folder / f"{name}.pth")
    return folder


def write_mnist(folder: Path) -> None:
    """128 images to train on and 32 to judge on, in MNIST's format."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for part, count in (("train", 128), ("t10k", 32)):
        sizes = {"images-idx3": (count, 28, 28), "labels-idx1": (count,)}
        for kind, shape in sizes.items():
            header = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">i4").tobytes()
            values = draw.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())


@pytest.fixture
def folder(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a page, with the stand-ins in it; nothing is downloaded."""
    for source in stand_ins.iterdir():
        if source.is_dir():
            shutil.copytree(source, tmp_path / source.name)
        else:
            (tmp_path / source.name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(WeightsEnum, "get_state_dict", random_weights)
    yield tmp_path
    for file in tmp_path.glob("*.py"):  # modules that a page wrote
        sys.modules.pop(file.stem, None)


def random_weights(weights: WeightsEnum, *_: object, **__: object) -> dict[str, torch.Tensor]:
    """A state dict of the right shapes for the builder that asked."""
    name = type(weights).__name__.removesuffix("_Weights").lower()
    torch.manual_seed(0)
    return dict(torchvision.models.get_model(name, weights=None).state_dict())


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, folder: Path) -> None:
    saved = [(registry, dict(registry)) for registry in (ROUTERS, GATES, WIRINGS)]
    try:
        run_page(page, folder)
    finally:
        for registry, before in saved:
            registry.clear()
            registry.update(before)  # type: ignore[arg-type]


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_prose_exist(page: str) -> None:
    """Commands in backticks, and those that a `text` block lists with what they do."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)
    said = [found[1] for found in INLINE.finditer(text)]
    for block in read_blocks(page):
        if block.language == "text":
            said += re.findall(r"^(dggraph .+?)(?:  |$)", block.code, flags=re.MULTILINE)
    for command in said:
        for words in commands(command.replace("...", "")):
            check_arguments(words[1:], page)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_prose_exist(page: str) -> None:
    """Names that begin with `dggraph.`, and fields of the report."""
    text = (ROOT / page).read_text("utf-8")
    for name in re.findall(r"`(dggraph(?:\.\w+)+)", text):
        assert pkgutil.resolve_name(name) is not None, name
    fields = {field.name for field in dataclasses.fields(ConversionReport)}
    for name in re.findall(r"\breport\.(\w+)`", text):
        assert name in fields | set(dir(ConversionReport)) | {"json", "html", "state"}, name


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("dggraph paths net photo.jpg --formt svg", "No such option '--formt'"),
        ("dggraph paths net photo.jpg --format gif", "'gif' is not one of 'svg'"),
        ("dggraph drwa net", "drwa"),
        ("torchrun --nproc 2 -m dggraph train", "--nproc"),
        ("pip install 'dggraph[kernel]'", "no extra {'kernel'}"),
        ("python examples/plain_lop.py net", r"plain_lop\.py"),
        ("python examples/timm_script.py DATA net --modl regnety_008", "--modl"),
    ],
)
def test_a_wrong_command_is_noticed(code: str, wrong: str) -> None:
    (words,) = commands(code)
    with pytest.raises((AssertionError, FileNotFoundError), match=wrong):
        check_command(words, "here")


@pytest.mark.parametrize("code", ["dggraph.covnert(net)", "from dggraph import covnert"])
def test_a_wrong_name_is_noticed(code: str) -> None:
    with pytest.raises(AttributeError, match="covnert"):
        check_names(code)


def test_a_reason_is_given_for_what_does_not_run() -> None:
    """`not run` stands only in comments that the test reads, with a reason of a few words."""
    for page in PAGES:
        reasons = [block.reason for block in read_blocks(page) if block.reason is not None]
        assert (ROOT / page).read_text("utf-8").count("<!-- not run") == len(reasons), page
        assert all(len(reason) > 10 for reason in reasons), page


def test_the_printed_graph_and_code() -> None:
    net = dggraph.convert("resnet18", stages={"layer2": ["layer2.0", "layer2.1"]})
    blocks = read_blocks("docs/how-it-works.md")
    assert str(net.graph) in [block.output and block.output.strip() for block in blocks]
    (printed,) = [block.code for block in blocks if "layer2_row0 =" in block.code]
    generated = {
        ast.unparse(statement)
        for statement in ast.walk(ast.parse(net.lowered.code.strip()))
        if isinstance(statement, ast.stmt)
    }
    for statement in ast.parse(printed).body:
        said = ast.unparse(statement)
        assert said == "..." or said in generated


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    assert set(re.findall(r"^\| `dggraph (\w+)", text, flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.skipif(
    not (ROOT / "mkdocs.yml").exists(), reason="tests of an installed package go without mkdocs.yml"
)
def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in PAGES[1:]:
        assert page.removeprefix("docs/") in menu, page


def test_files_that_pages_name_exist() -> None:
    """Pages name files of the package from `dggraph/` on, as `compiler/lowering.py`."""
    for page in PAGES:
        for name in re.findall(r"`(\w+/\w+\.py)`", (ROOT / page).read_text("utf-8")):
            places = (Path(dggraph.__file__).parent / name, ROOT / name)
            assert any(place.exists() for place in places) or name.startswith("benchmarks/"), name


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert (ROOT / target).exists(), target
