"""The numbers of a comparison from its rows, by hand."""

from math import nan, sqrt
from pathlib import Path

import pytest
from toy_summary import PLAN, plan_with_rows

from dggraph.comparing.plan import PlannedRun
from dggraph.comparing.rows import state_of
from dggraph.comparing.summary import summarise
from dggraph.views.comparison_numbers import ComparisonSummary

BASE = {"easy": (90.0, 90.5, 91.0), "hard": (60.0, 62.0, 61.0)}
GAINS = {
    "static": (0.0, 0.0, 0.0),
    "node": (1.0, 2.0, 3.0),
    "edges": (0.5, 0.5, 0.5),
    "short": (-2.0, -2.0, -2.0),
}


def accuracy(run: PlannedRun) -> float:
    return BASE[run.data][run.seed] + GAINS[run.method][run.seed]


@pytest.fixture
def summary(tmp_path: Path) -> ComparisonSummary:
    plan = plan_with_rows(tmp_path, accuracy)
    return summarise(plan, state_of(plan), "dggraph compare it.toml")


def test_means_spreads_and_paired_differences(summary: ComparisonSummary) -> None:
    assert [setting.name for setting in summary.settings] == ["easy · small", "hard · small"]
    node = summary.settings[0].find("node")
    assert node is not None
    assert node.accuracies == pytest.approx((91.0, 92.5, 94.0))
    assert node.mean == pytest.approx(92.5)
    assert node.deviation == pytest.approx(1.5)
    difference = node.differences["static"]
    assert difference.mean == pytest.approx(2.0)
    assert difference.half_width == pytest.approx(4.30265 / sqrt(3), rel=1e-5)
    assert difference.p_value == pytest.approx(0.0741799, abs=1e-6)
    assert node.differences["edges"].mean == pytest.approx(1.5)
    assert node.num_seeds_needed == 10, "the pairs spread by one point"
    assert node.facts["macs"] == 1_010_000
    assert node.command.startswith("dggraph train --model dggraph:resnet14_4")


def test_roles_decide_what_is_corrected(summary: ComparisonSummary) -> None:
    setting = summary.settings[0]
    roles = {entry.name: entry.role for entry in setting.entries}
    assert roles == {"static": "baseline", "node": "method", "edges": "control", "short": "size"}
    assert summary.num_tests == 6, "two methods in two settings and on average"
    node, edges, short = (setting.find(name) for name in ("node", "edges", "short"))
    assert node is not None
    assert edges is not None
    assert short is not None
    # three differences are the same in every pair, so their p is about 0; node's are last
    p = node.differences["static"].adjusted_p_value
    assert p == pytest.approx(3 * 0.0741799, abs=1e-5)
    assert edges.differences["static"].mark == "better"
    assert node.differences["static"].mark == "unclear"
    assert short.differences["static"].adjusted_p_value is None
    assert short.differences["static"].mark == "maybe worse", "sizes are not tested"


def test_the_mean_over_all_settings_is_paired_by_seed(summary: ComparisonSummary) -> None:
    assert summary.overall is not None
    assert summary.overall.name == "all 2 settings"
    static, node = summary.overall.find("static"), summary.overall.find("node")
    assert static is not None
    assert node is not None
    assert static.accuracies == pytest.approx((75.0, 76.25, 76.0))
    assert node.differences["static"].mean == pytest.approx(2.0)


def test_while_a_setting_is_in_progress_the_mean_is_over_the_finished_ones(tmp_path: Path) -> None:
    def some(run: PlannedRun) -> float | None:
        if run.data == "third":
            return 30.0 if run.seed == 0 else nan
        return accuracy(run)

    text = PLAN.replace("[methods.static]", '[data.third]\ndata_dir = "third"\n[methods.static]')
    plan = plan_with_rows(tmp_path, some, text=text)
    summary = summarise(plan, state_of(plan), "")
    assert summary.overall is not None
    assert summary.overall.name == "the 2 finished settings"
    node = summary.overall.find("node")
    assert node is not None
    assert node.seeds == (0, 1, 2)
    assert node.accuracies == pytest.approx((76.0, 78.25, 79.0))


def test_the_curve_is_read_at_equal_macs(tmp_path: Path) -> None:
    """From .6 M MACs with -2 to 1 M with 0: at .9 M the line is at -.5; 1.01 M lies beyond it."""
    plan = plan_with_rows(tmp_path, accuracy)
    state = state_of(plan)
    for run, row in state.done.items():
        if run.method == "edges":
            row["macs"] = 900_000
    summary = summarise(plan, state, "")
    edges, node = (summary.settings[0].find(name) for name in ("edges", "node"))
    assert edges is not None
    assert node is not None
    above = edges.differences["the curve"]
    assert above.mean == pytest.approx(0.5 + 0.5)
    assert above.half_width == pytest.approx(0.0, abs=1e-9)
    assert "the curve" not in node.differences


def test_rows_that_are_missing_or_failed_are_counted(tmp_path: Path) -> None:
    def some(run: PlannedRun) -> float | None:
        if (run.method, run.data, run.seed) == ("node", "hard", 1):
            return None
        return nan if run.seed == 2 and run.data == "easy" else accuracy(run)

    plan = plan_with_rows(tmp_path, some)
    summary = summarise(plan, state_of(plan), "")
    assert (summary.num_done, summary.num_planned) == (19, 24)
    assert summary.failures == (("node, small, hard, seed 1", "the loss is not finite"),)
    easy, hard = (setting.find("node") for setting in summary.settings)
    assert easy is not None
    assert hard is not None
    assert easy.seeds == (0, 1)
    assert hard.seeds == (0, 2)
    assert hard.differences["static"].mean == pytest.approx(2.0), "pairs of seeds 0 and 2"
    assert summary.overall is not None
    node = summary.overall.find("node")
    assert node is not None
    assert node.seeds == (0,)
    assert node.differences == {}


def test_no_row_at_all(tmp_path: Path) -> None:
    plan = plan_with_rows(tmp_path, lambda run: nan)
    summary = summarise(plan, state_of(plan), "")
    assert summary.num_done == 0
    assert summary.verdict == (
        "Nothing can be said yet: no method shares two seeds with the static network.",
    )
