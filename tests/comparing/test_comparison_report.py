"""The report: the page, its JSON and its Markdown say the numbers of the rows, and need nothing."""

import json
import re
from pathlib import Path

import pytest
from markup import HOSTILE, Page
from toy_summary import PLAN, plan_with_rows

from dggraph.cli.main import main
from dggraph.comparing.plan import Plan, PlannedRun
from dggraph.comparing.report import write_report

GAINS = {"static": 0.0, "node": 1.0, "edges": 0.5, "short": -2.0}
NOISE = (0.3, -0.2, 0.1)


def accuracy(run: PlannedRun) -> float:
    gain = GAINS.get(run.method, 0.25)
    return 80 + gain + NOISE[(run.seed + len(run.method)) % 3]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_with_rows(tmp_path, accuracy)


def test_page_markdown_and_json_have_the_same_numbers(plan: Plan) -> None:
    summary, (page, document, markdown) = write_report(plan, "dggraph compare it.toml")
    html, text = page.read_text(), markdown.read_text()
    numbers = json.loads(document.read_text())
    assert numbers["verdict"] == list(summary.verdict)
    for setting in summary.settings:
        for entry in setting.entries:
            assert f"{entry.mean:.2f}" in text
            assert entry.command in text
            if "static" in entry.differences:
                one = entry.differences["static"]
                shown = f"{one.mean:+.2f}".replace("-", "−") + f" ± {one.half_width:.2f}"
                assert shown in text
                assert shown in html
    found = Page(html)
    said = "".join(found.texts)
    assert all(sentence in said for sentence in summary.verdict)
    assert said.index(summary.verdict[0]) < said.index("At a glance"), "the answer comes first"
    assert said.count("dggraph train --model") == 8
    assert "6 differences of methods and controls" in said
    assert len(found.all("svg", "scatter")) == 2
    assert len(found.all("path", "target")) == 2, "the curve through static and short"
    assert numbers["settings"][0]["entries"][1]["name"] == "node"
    assert len(numbers["settings"][0]["entries"][1]["accuracies"]) == 3


def test_the_page_is_offline_and_without_scripts(plan: Plan) -> None:
    _, (file, *_) = write_report(plan, "")
    html = file.read_text()
    assert "<script" not in html
    assert not re.search(r"https?://", html)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    names = [name for name in HOSTILE if name.isprintable()]
    text = PLAN + "".join(
        f"[methods.{json.dumps(name)}]\nlr = 0.0{i + 1}\n" for i, name in enumerate(names)
    )
    plan = plan_with_rows(tmp_path, accuracy, text=text)
    _, (file, _, markdown) = write_report(plan, "")
    page = Page(file.read_text())
    assert not page.all("img")
    assert not page.all("script")
    assert {"onerror", "onload"}.isdisjoint(key for _, attrs in page.tags for key in attrs)
    assert "<script>" not in re.sub(r"`[^`]*`", "", markdown.read_text())


def test_failed_runs_and_missing_measurements_are_said(tmp_path: Path) -> None:
    def some(run: PlannedRun) -> float | None:
        return None if run.method == "node" and run.seed == 1 else accuracy(run)

    plan = plan_with_rows(tmp_path, some)
    rows = [json.loads(line) for line in plan.rows_file.read_text().splitlines()]
    rows[1 if "error" in rows[0] else 0]["versions"] = {"source": "abc"}
    rows[0]["unmeasured"] = {"training": "ValueError: no memory"}
    plan.rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, (file, _, markdown) = write_report(plan, "")
    said = "".join(Page(file.read_text()).texts)
    assert "Not complete: 2 failed. Runs differ in machine or code" in said
    assert "with code abc: 1 run." in said
    assert "with code ?: 21 runs." in said
    for text in (said, markdown.read_text()):
        assert "node, small, hard, seed 1: the loss is not finite" in text
        assert "static, easy · small: training: ValueError: no memory" in text


def test_a_comparison_without_rows_has_a_page(tmp_path: Path) -> None:
    plan = plan_with_rows(tmp_path, lambda run: float("nan"))
    _, (file, *_) = write_report(plan, "")
    said = "".join(Page(file.read_text()).texts)
    assert "Nothing can be said yet" in said
    assert "24 of 24 runs not finished" in said


def test_the_command_prints_the_answer(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    file = plan.output.parent / "comparison.toml"
    for flags, reads in (((), str), (("--json",), json.loads)):
        with pytest.raises(SystemExit) as ended:
            main(["compare", str(file), "--report", *flags])
        assert not ended.value.code
        out = reads(capsys.readouterr().out)
        if flags:
            assert out["files"][0] == str(plan.output / "comparison.html")
            assert out["verdict"]
        else:
            assert "the static network" in out.splitlines()[0]
            assert "comparison.md" in out
