"""benchmarks/gpu.py runs from end to end on the CPU, tiny; its page is what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("timm", reason="the benchmark takes its static networks from timm")

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


def run_python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    done = run_python(str(BENCHMARKS / "gpu.py"), "--smoke", "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads(output.read_text())
    return loaded


@pytest.fixture
def page_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_page

    return gpu_page.page_of


def test_every_part_runs(found: dict[str, Any]) -> None:
    assert found["is_smoke"]
    assert found["machine"]["torch"] == torch.__version__.split("+")[0]
    assert found["tests"]["exit code"] == 0, found["tests"]
    assert "passed" in found["tests"]["result"]
    assert len(found["aggregation"]) == 4
    assert [row["how"] for row in found["training"]] == ["eager", "compiled"]
    assert [(row["dtype"], row["batch"]) for row in found["inference"]] == [
        ("float32", 1),
        ("float32", 2),
        ("bfloat16", 1),
        ("bfloat16", 2),
    ]
    assert not found["left out"]


def test_ratios_are_over_the_static_network(found: dict[str, Any]) -> None:
    for row in (*found["training"], *found["inference"]):
        assert row["static"]["ratio"] == 1
        assert row["static"]["ms"] > 0
    for row in found["inference"]:
        assert row["0.5"]["MACs ratio"] < row["0.75"]["MACs ratio"] < row["1.0"]["MACs ratio"]
        assert {"masked", "sparse"} < set(row["0.5"])
        assert row["0.5"]["ran"] == "sparse"


def test_a_smoke_run_is_no_measurement(found: dict[str, Any], page_of: Any) -> None:
    with pytest.raises(ValueError, match="smoke run"):
        page_of(found)


def test_the_page_has_a_row_for_each_measurement(found: dict[str, Any], page_of: Any) -> None:
    page = page_of({**found, "is_smoke": False, "left out": ["training, ResNet-50, compiled"]})
    lines = page.splitlines()
    rows = [line for line in lines if line.startswith("| ") and "---" not in line]
    measured = sum(len(found[part]) for part in ("aggregation", "training", "inference"))
    assert len(rows) == 3 + measured
    widths = {line.count("|") for line in rows}
    assert widths == {8, 7, 13}
    assert "No time was left for: training, ResNet-50, compiled." in lines


def test_the_page_is_that_of_the_measurements(page_of: Any) -> None:
    """Written by `python benchmarks/gpu.py --page`; without measurements it says so."""
    source = ROOT / "docs/benchmarks/gpu.json"
    measured = json.loads(source.read_text()) if source.exists() else None
    assert (ROOT / "docs/benchmarks/gpu.md").read_text(encoding="utf-8") == page_of(measured)
    assert ("has not run on a GPU yet" in page_of(None)) is True


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_both_say_so() -> None:
    done = run_python(str(BENCHMARKS / "gpu.py"))
    assert done.returncode == 2
    assert "no GPU is available" in done.stderr
    tests = str(ROOT / "tests/ops/test_device_copies.py")
    done = run_python("-m", "pytest", "-n", "0", "--device", "cuda", tests)
    assert done.returncode == 4
    assert "torch finds no GPU" in done.stderr
