"""TensorBoard's event files hold the rows of metrics.jsonl, each once, also after a run was killed
behind its checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from toy_runs import contents, keys

from dggraph.errors import DggraphWarning, MissingExtraError
from dggraph.training import loop
from dggraph.training.events import EVENTS
from dggraph.training.loop import train
from dggraph.training.metrics import METRICS, read_rows

accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not here"
)


def looking(folder: Path) -> Any:
    return accumulator.EventAccumulator(
        str(folder / EVENTS), size_guidance={accumulator.SCALARS: 0}
    )


def scalars(reader: Any) -> dict[str, list[tuple[int, float]]]:
    """By tag, (step, value) as TensorBoard reads them."""
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    rows, _ = read_rows(folder / METRICS)
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        part, names = (
            ("validation", {"top1", "top5", "accuracy"})
            if "epoch" in row
            else ("train", {"loss", "lr"})
        )
        for name in (
            names | {"kept", "budget_multiplier", "num_paths", "path_entropy_bits"} & row.keys()
        ):
            found.setdefault(f"{part}/{name}", []).append(
                (row["step"], pytest.approx(row[name], rel=1e-6))
            )
    return found


def test_a_run_that_died_behind_its_checkpoint_leaves_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies at step 7, after a checkpoint at 4. One TensorBoard looks all the time, another comes
    at the end.
    """
    whole = train(keys(tmp_path / "whole")).folder
    real = loop.take_step

    def step(run: Any, *args: Any) -> Any:
        if run.step == 7:
            raise KeyboardInterrupt
        return real(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(keys(tmp_path / "parts", tensorboard=True))
    folder = tmp_path / "parts" / "run"
    patient = looking(folder)
    assert [step for step, _ in scalars(patient)["train/loss"]] == [1, 2, 3, 4, 5, 6, 7]
    train(keys(tmp_path / "parts", tensorboard=True))
    assert scalars(looking(folder)) == scalars(patient) == expected(folder)
    assert len(expected(folder)["train/loss"]) == 18
    assert len(expected(folder)["validation/kept"]) == 2
    assert contents(folder) == contents(whole), (
        "and the run is the same with event files as without"
    )


def test_event_files_may_be_asked_for_later(tmp_path: Path) -> None:
    """The key decides nothing that is computed. The files start with the run, not with the key."""
    train(keys(tmp_path, epochs=1))
    assert not (tmp_path / "run" / EVENTS).exists()
    train(keys(tmp_path, epochs=1, tensorboard=True))
    assert scalars(looking(tmp_path / "run")) == expected(tmp_path / "run")


def test_without_tensorboard_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"dggraph\[tensorboard\]"):
        train(keys(tmp_path, tensorboard=True))
    assert list(tmp_path.iterdir()) == []


class _Full:
    """Event files on a full disk."""

    def __init__(self, *_args: object, **_options: object) -> None: ...

    def add_scalar(self, *_args: object) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None: ...


def test_a_run_goes_on_without_events_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dggraph.training.events.event_writer", lambda: _Full)
    with pytest.warns(
        DggraphWarning, match="goes on without tensorboard: .*No space left"
    ) as caught:
        result = train(keys(tmp_path, epochs=1, tensorboard=True))
    assert result.is_finished
    assert len(caught) == 1
    monkeypatch.undo()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tensorboard").write_text("a file in the way")
    with pytest.warns(DggraphWarning, match="goes on without tensorboard"):
        assert train(keys(tmp_path, epochs=1, tensorboard=True, experiment="other")).is_finished
