"""Rows of a run and the page made of them: the same for a run that was interrupted, and readable whatever a dying process left."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from test_loop import keys

from dggraph.training import loop
from dggraph.training.loop import train
from dggraph.training.metrics import METRICS, SUMMARY, TIMING, append_row, make_page, read_rows


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
    assert read_rows(file)[1] == 3 and len(read_rows(file)[0]) == 2


def test_the_page_of_an_interrupted_run_is_that_of_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the time it took. On the way it says that there is more to come."""
    whole = train(keys(tmp_path)).folder
    page, timing = (whole / SUMMARY).read_text(), (whole / TIMING).read_bytes()
    assert page == make_page(whole) and "Finished: 2 of 2 epochs, step 18." in page and "<bdi>toy_data:make</bdi>" in page
    shutil.rmtree(whole)
    real, stops = loop._step, {3, 9, 14}

    def step(run: Any, *args: Any) -> Any:
        row = real(run, *args)
        if run.step in stops:
            stops.remove(run.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    monkeypatch.setattr(loop, "_step", step)
    states = []
    while not (result := train(keys(tmp_path))).is_finished:
        states.append((result.folder / SUMMARY).read_text().partition("when this was written: ")[2].partition(".")[0])
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
    assert damaged.replace('<p class="warning">1 line of metrics left out: not readable.</p>', "") == page
