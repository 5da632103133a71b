"""Every model of the published tables, examined again; minutes each: `pytest -m slow`."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torchvision

spec = importlib.util.spec_from_file_location(
    "sweep", Path(__file__).resolve().parents[2] / "docs" / "sweep.py"
)
assert spec is not None
assert spec.loader is not None
sweep: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)


def test_the_script_starts() -> None:
    said = subprocess.run(
        [sys.executable, spec.origin, "--help"], capture_output=True, text=True, check=True
    )
    assert "torchvision,timm,transformers" in said.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_a_torchvision_classifier(name: str) -> None:
    row = sweep.examine(name)
    opened, tried = map(int, row["opens"].split("/"))
    assert row["auto"]
    assert row["keep"]
    assert row["lift"] <= 1e-5
    assert row["reference"] <= sweep.REFERENCE_TOLERANCE
    assert opened == tried > 0


def test_the_table_counts_what_its_rows_say() -> None:
    good = {
        "name": "a",
        "covered": 0.8,
        "auto": True,
        "keep": True,
        "lift": 1e-7,
        "depths": [2],
        "blocks": [1],
        "edges": 3,
    }
    good |= {"residuals": ["keep"], "opens": "1/1", "static": ["fc: x"], "reference": 1e-6}
    text = sweep.table(
        [
            good,
            good | {"name": "b", "covered": 0.3},
            {"name": "c", "error": "TraceError: no | way"},
        ],
        "timm",
    )
    assert "2 of 3 converted, 2 bitwise identical" in text
    assert "2 count as converted" in text
    assert "1 of these have at least half" in text
    assert "stages 0.550" in text
    assert "no / way" in text
    assert "fc: x" in text
