"""The documentation's code runs as printed, and its printed graph and table figures are what the
package says.
"""

import re
from pathlib import Path

import pytest

import dggraph
from dggraph.cli.main import COMMANDS
from dggraph.graph.wiring import WIRINGS
from dggraph.ops.gating import GATES
from dggraph.ops.routing import ROUTERS

ROOT = Path(__file__).resolve().parent.parent


def blocks(file: str, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$",
        (ROOT / file).read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "docs/tutorial.md",
        "docs/pictures.md",
        "docs/training.md",
        "docs/detection.md",
        "docs/budgets.md",
        "docs/inference.md",
        "docs/extending.md",
    ],
)
def test_the_code_runs(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved = [(registry, dict(registry)) for registry in (ROUTERS, GATES, WIRINGS)]
    code = "\n".join(blocks(file, "python")).replace('weights="IMAGENET1K_V2"', "weights=None")
    try:
        exec(compile(code, file, "exec"), {"__name__": "documentation"})
    finally:
        for registry, before in saved:
            registry.clear()
            registry.update(before)  # type: ignore[arg-type]


def test_the_printed_graph_and_code() -> None:
    net = dggraph.convert("resnet18", stages={"layer2": ["layer2.0", "layer2.1"]})
    assert blocks("docs/how-it-works.md", "text")[0].strip() == str(net.graph)
    generated = re.sub(r";  .* = None", "", net.lowered.code)
    for line in blocks("docs/how-it-works.md", "python")[0].strip().splitlines():
        assert line.startswith("...") or line in generated


def test_every_command_is_documented() -> None:
    table = (ROOT / "docs/command-line.md").read_text()
    assert set(re.findall(r"^\| `dggraph (\w+)", table, flags=re.MULTILINE)) == set(COMMANDS)
