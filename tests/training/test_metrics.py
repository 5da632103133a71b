"""Rows of a run and the page made of them: the same for a run that was interrupted, and readable
whatever a dying process left.
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from toy_runs import keys, stop_after

from dggraph.errors import DggraphWarning, TrainingError
from dggraph.training import loop
from dggraph.training.loop import train
from dggraph.training.metrics import (
    METRICS,
    SUMMARY,
    TIMING,
    append_row,
    cut_rows,
    make_page,
    read_rows,
    sync_rows,
)


def test_rows_come_back_and_half_of_one_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_rows(file) == ([], 0), "not begun"
    append_row(file, {"step": 1, "name": "línea\n"})
    append_row(file, {"step": 2})
    assert read_rows(file) == ([{"step": 1, "name": "línea\n"}, {"step": 2}], 0)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"step": 3, "lo')
    assert read_rows(file) == ([{"step": 1, "name": "línea\n"}, {"step": 2}], 1)
    file.write_bytes(b"\xff\xfe\n[1]\n" + b"[" * 100_000 + b"\n" + whole)
    assert read_rows(file)[1] == 3
    assert len(read_rows(file)[0]) == 2


def test_the_page_of_an_interrupted_run_is_that_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the time it took. On the way it says that there is more to come."""
    whole = train(keys(tmp_path)).folder
    page, timing = (whole / SUMMARY).read_text(), (whole / TIMING).read_bytes()
    assert page == make_page(whole)
    assert "Finished, but the budget was missed: 2 of 2 epochs, step 18." in page
    assert "<bdi>toy_data:make</bdi>" in page
    shutil.rmtree(whole)
    stop_after(monkeypatch, 3, 9, 14)
    states = []
    while not (result := train(keys(tmp_path))).is_finished:
        states.append(
            (result.folder / SUMMARY)
            .read_text()
            .partition("when this was written: ")[2]
            .partition(".")[0]
        )
    assert states == ["0 of 2 epochs, step 3", "0 of 2 epochs, step 9", "1 of 2 epochs, step 14"]
    assert (result.folder / SUMMARY).read_text() == make_page(result.folder)
    (result.folder / TIMING).write_bytes(timing)
    assert make_page(result.folder) == page


def test_the_page_bears_what_a_dying_process_left(tmp_path: Path) -> None:
    folder = train(keys(tmp_path, epochs=1, router="none", budget=None)).folder
    page = make_page(folder)
    with (folder / METRICS).open("ab") as stream:
        stream.write(b'{"step": 10, "loss": 0.')
    damaged = make_page(folder)
    assert "1 line of metrics left out: not readable." in damaged
    assert (
        damaged.replace('<p class="warning">1 line of metrics left out: not readable.</p>\n', "")
        == page
    )


@pytest.mark.parametrize(
    ("content", "size", "kept", "said"),
    [
        (b'{"step": 1}\n{"step": 2}\n{"st', 24, b'{"step": 1}\n{"step": 2}\n', ""),
        (b'{"step": 1}\n{"step": 2}\n', 12, b'{"step": 1}\n', ""),
        (b'{"step": 1}\n{"st', 24, b'{"step": 1}\n', "after row 1: 12 bytes"),
        (b'{"step": 1}\n' + bytes(12), 24, b'{"step": 1}\n', "after row 1: 12 bytes"),
        (b'{"step": 1}\n[]\n{"step": 2}\n', 27, b'{"step": 1}\n', "after row 1: 15 bytes"),
        (b"", 24, b"", "after row 0: 24 bytes"),
        (None, 24, b"", "is missing, so a new one was started"),
        (None, 0, b"", ""),
    ],
)
def test_rows_are_cut_back_to_whole_ones(
    tmp_path: Path, content: bytes | None, size: int, kept: bytes, said: str
) -> None:
    file = tmp_path / "rows.jsonl"
    if content is not None:
        file.write_bytes(content)
    sentence = cut_rows(file, size)
    assert file.read_bytes() == kept
    assert said in sentence
    assert bool(sentence) == bool(said)


@pytest.mark.parametrize("damage", ["shorter", "zeros", "gone"])
def test_a_run_goes_on_with_what_is_left_of_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    real, synced = loop.take_step, list[Path]()

    def step(run: Any, *args: Any) -> Any:
        row = real(run, *args)
        if run.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    def sync(file: Path) -> int:
        synced.append(file)
        return sync_rows(file)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", step)
        patch.setattr("dggraph.training.runs.sync_rows", sync)
        folder = train(keys(tmp_path)).folder
    assert set(synced) == {folder / METRICS}, "a checkpoint counts on rows that are on the disk"
    file, rows = folder / METRICS, (folder / METRICS).read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(rows[:-30] + (bytes(30) if damage == "zeros" else b""))
    with (folder / TIMING).open("ab") as stream:
        stream.write(b'{"epoch": 1, "sec')
    told: list[Any] = []
    result = train(keys(tmp_path), told.append)
    notes = [row["note"] for row in told if "note" in row]
    assert result.is_finished
    assert len(notes) == 2
    assert "metrics.jsonl" in notes[0]
    assert "timing.jsonl" in notes[1]
    found, num_unreadable = read_rows(file)
    expected = list(range(7, 19)) if damage == "gone" else [*range(1, 6), *range(7, 19)]
    assert num_unreadable == 0
    assert [row["step"] for row in found if "loss" in row] == expected
    assert read_rows(folder / TIMING)[1] == 0


def test_what_only_tells_of_a_run_may_fail(tmp_path: Path) -> None:
    """The page, times and events cannot be written here, for folders are in the way; the rows that
    count are.
    """
    for name in (SUMMARY, TIMING):
        (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.warns(DggraphWarning, match="the run goes on without") as caught:
        result = train(keys(tmp_path, epochs=1))
    assert result.is_finished
    assert {str(one.message).split(": ")[0].split()[-1] for one in caught} == {SUMMARY, TIMING}


def test_rows_that_count_must_be_written(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with pytest.raises(TrainingError, match=r"rows.*the same call goes on"):
        append_row(tmp_path / "rows", {"step": 1})
