"""The sentences of a comparison: what is sure, what is not, and what would be needed."""

from pathlib import Path

import pytest
from toy_summary import plan_with_rows

from dggraph.comparing.plan import PlannedRun
from dggraph.comparing.rows import state_of
from dggraph.comparing.summary import summarise

NOISE = (0.31, -0.24, 0.08, -0.3, 0.15)


def verdict(folder: Path, node: float, edges: float, *, noise: float = 1.0) -> tuple[str, ...]:
    gains = {"static": 0.0, "node": node, "edges": edges, "short": -2.0}

    def accuracy(run: PlannedRun) -> float:
        place = (run.seed + len(run.method) + len(run.data)) % 5
        return 80 + gains[run.method] + noise * NOISE[place]

    plan = plan_with_rows(folder, accuracy, seeds="[0, 1, 2, 3, 4]")
    return summarise(plan, state_of(plan), "").verdict


def test_nothing_beats_the_static_network(tmp_path: Path) -> None:
    first, *others = verdict(tmp_path, 0.0, 0.0)
    assert first == "No method beats the static network beyond what chance explains."
    assert any("seeds would be needed" in sentence for sentence in others)


def test_a_gain_that_is_sure(tmp_path: Path) -> None:
    first, *others = verdict(tmp_path, 4.0, 0.0)
    assert first.startswith("Better than the static network, and sure: node on ")
    assert "all 2 settings (+4.00 ±" in first
    assert "node on all 2 settings also beats edges." in others
    assert any("is that of node: +4.00" in sentence for sentence in others)
    assert any("and this is sure" in sentence for sentence in others)


def test_a_gain_that_a_control_has_too(tmp_path: Path) -> None:
    first, *others = verdict(tmp_path, 4.0, 4.1)
    assert first.startswith("Better than the static network, and sure: node")
    assert any(
        sentence.startswith("node on") and "does not beat edges beyond its interval" in sentence
        for sentence in others
    )
    assert any(
        sentence.startswith("Controls that are better than the static network, and sure: edges")
        for sentence in others
    )


def test_a_loss_that_is_sure(tmp_path: Path) -> None:
    first, *others = verdict(tmp_path, -4.0, -3.0)
    assert first == "No method beats the static network beyond what chance explains."
    assert others[0].startswith("Worse, and sure: node on")
    assert any("is that of the static network itself" in sentence for sentence in others)


def test_a_gain_outside_its_interval_alone_is_not_sure(tmp_path: Path) -> None:
    first, second, *_ = verdict(tmp_path, 0.6, 0.0)
    assert first == "No method beats the static network beyond what chance explains."
    assert second.startswith(
        "Above it by more than the own interval, but among 3 differences not sure: node on"
    )


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_more_noise_needs_more_seeds(tmp_path: Path, noise: float) -> None:
    sentence = verdict(tmp_path, 0.0, 0.0, noise=noise)[-1]
    assert "with 5 seeds" in sentence
    assert ("To see one point, 3 " in sentence) == (noise == 0.5)
