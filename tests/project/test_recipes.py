"""The recipes' scripts train: the loss falls, MACs go to the budget, and the archive is the trained
network.
"""

import os
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ON_TWO_PROCESSES
from PIL import Image

import dggraph

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a script's `main`: the rows that it prints, and the network that it saves."""
    saved: list[Any] = []
    real = dggraph.save

    def save(net: Any, *arguments: Any, **keys: Any) -> None:
        saved.append(net)
        real(net, *arguments, **keys)

    monkeypatch.setattr(dggraph, "save", save)

    def call(script: str, argument: Any) -> tuple[list[dict[str, float]], Any]:
        runpy.run_path(str(EXAMPLES / script))["main"](argument)
        (net,) = saved
        return rows(capsys.readouterr().out), net

    return call


def rows(printed: str) -> list[dict[str, float]]:
    return [
        {key: float(value) for key, value in re.findall(r"(\w+) ([\d.]+)", line)}
        for line in printed.splitlines()
    ]


def check_rows(found: list[dict[str, float]], target: float) -> None:
    first, last = found[0], found[-1]
    assert last["loss"] < 0.75 * first["loss"]
    assert abs(last["kept"] - target) < 0.6 * abs(first["kept"] - target)
    assert first["kept"] > 1


def check_archive(archive: Path, net: Any, model: torch.nn.Module | None = None) -> None:
    again = dggraph.load(archive, model)
    x = torch.randn(6, *again.preprocess.input_size)
    assert torch.equal(again.eval()(x), net.eval()(x))
    threshold = next(
        buffer for name, buffer in again.lowered.named_buffers() if name.endswith(".threshold")
    )
    assert float(threshold) == 0.5


def test_plain_loop(run: Any, tmp_path: Path) -> None:
    found, net = run("plain_loop.py", str(tmp_path / "net"))
    check_rows(found, 0.7)
    check_archive(tmp_path / "net", net)


def test_accelerate(run: Any, tmp_path: Path) -> None:
    found, net = run("accelerate_loop.py", str(tmp_path / "net"))
    check_rows(found, 0.7)
    check_archive(tmp_path / "net", net)


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # timm's data set leaves them to the collector
def test_timm_script(run: Any, tmp_path: Path) -> None:
    import timm

    paint(tmp_path / "data")
    arguments = (
        "--model regnetx_002 --img-size 32 --epochs 6 --batch-size 16 --workers 0 --warmup-epochs 1"
        " --lr 3e-3 --ema-decay 0.8"
    )
    found, net = run(
        "timm_script.py",
        [str(tmp_path / "data"), str(tmp_path / "net"), *arguments.split(), "--budget", "0.7"],
    )
    check_rows(found, 0.7)
    assert found[-1]["top1"] > 80
    assert net.labels is None, "saving does not change the network"
    check_archive(tmp_path / "net", net, timm.create_model("regnetx_002", num_classes=4))
    assert dggraph.load(
        tmp_path / "net", timm.create_model("regnetx_002", num_classes=4)
    ).labels == ("a", "b", "c", "d")


def paint(folder: Path) -> None:
    """Four classes: which half of which colour is bright."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 24), ("val", 8)):
        for label, name in enumerate("abcd"):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                image_CHW = torch.rand(3, 40, 40, generator=generator) * 0.5
                image_CHW[label % 3, 20 * (label // 3) : 20 * (label // 3) + 20] += 0.5
                pixels = (image_CHW.permute(1, 2, 0) * 255).byte().numpy()
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


def test_timm_task() -> None:
    """The page's own code: the task's loss is the classification loss plus the budget's."""
    page = (EXAMPLES.parent / "docs" / "recipes" / "timm_script.md").read_text()
    code: dict[str, Any] = {}
    exec(
        re.findall(r"^```python\n(from timm.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)[0],
        code,
    )
    net = dggraph.convert("dggraph:resnet14_4", torch.zeros(1, 3, 16, 16)).train()
    task = code["BudgetTask"](
        net, criterion=torch.nn.CrossEntropyLoss(), device=torch.device("cpu")
    )
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    result = task(images, labels)
    output, gates = net(images, return_gates=True)
    assert torch.equal(result["output"], output)
    plain, budget = (
        torch.nn.functional.cross_entropy(output, labels),
        dggraph.losses.budget(gates, 0.8),
    )
    assert result["loss"].item() == pytest.approx((plain + budget).item())
    assert budget.item() > 0.01
    result["loss"].backward()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["plain_loop.py", "accelerate_loop.py"])
def test_on_two_processes(script: str, tmp_path: Path) -> None:
    command = [*ON_TWO_PROCESSES]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "1",
    }
    done = subprocess.run(
        [*command, str(EXAMPLES / script), str(tmp_path / "net")],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = rows(done.stdout)
    assert found[-1]["loss"] < 0.75 * found[0]["loss"]
    assert len({row["step"] for row in found}) == len(found), "one process prints"
    dggraph.load(tmp_path / "net")
