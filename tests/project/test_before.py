"""Files of the first version, stored beside this file, still load, evaluate and resume.

`before/archive` holds `dggraph:resnet8_4` with seeded routers, `before/outputs.json` what it gave,
`before/run` a run on `toy_data:make` that was stopped after 4 of 18 steps, and
`before/metrics-of-the-whole-run.jsonl` what the first version went on to write.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import run

import dggraph
from dggraph.training.config import read_config
from dggraph.training.loop import train

BEFORE = Path(__file__).parent / "before"


def test_an_archive_of_the_first_version_gives_what_it_gave() -> None:
    net = dggraph.load(BEFORE / "archive").eval()
    x = torch.linspace(-1, 1, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32)
    expected = torch.tensor(json.loads((BEFORE / "outputs.json").read_text()))
    with torch.no_grad():
        assert torch.allclose(net(x), expected, rtol=1e-6, atol=1e-6)
    assert net.source == "dggraph:resnet8_4"
    assert net.graph.name == "SmallResNet"


def test_a_run_of_the_first_version_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    (found,) = (json.loads((BEFORE / "run/config.json").read_text()),)
    result = train(read_config(None, found | {"output": str(tmp_path)}))
    assert result.is_finished
    assert result.step == 18
    ours, theirs = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (result.folder / "metrics.jsonl", BEFORE / "metrics-of-the-whole-run.jsonl")
    )
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
    code, out, _ = run(capsys, "eval", str(result.folder), "--dataset", "toy_data:make", "--json")
    assert code == 0
    assert json.loads(out)["num_images"] == 40
