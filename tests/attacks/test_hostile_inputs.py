"""Hostile archives, configurations, checkpoints, runs, images and annotations, read by the command
in a guarded process: the right error and exit code; no stranger's code, no write elsewhere, little
time, little memory.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import hostile_inputs
import pytest

SECONDS, MEGABYTES = 2, 200


def read_guarded(folder: Path, kind: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, hostile_inputs.__file__, str(folder), kind],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_all_end_as_they_must(rows: list[dict[str, Any]], cases: Collection[str]) -> None:
    assert [row["name"] for row in rows] == list(cases)
    for row in rows:
        code, words = row["expected"]
        assert not row["refused"], row
        assert not row["has_run"], row
        assert row["error"] is None, row
        assert row["code"] == code, row
        assert re.search(words, row["err"] + row["out"]), row
        assert "please report it" not in row["err"], row
        assert code == 0 or row["err"].count("\n") == 1, row
        assert row["megabytes"] < MEGABYTES, row


def test_some_hostile_inputs(tmp_path: Path) -> None:
    assert_all_end_as_they_must(read_guarded(tmp_path, "some"), hostile_inputs.SOME)


@pytest.mark.attack
@pytest.mark.parametrize("kind", hostile_inputs.KINDS)
def test_hostile_inputs(tmp_path: Path, kind: str) -> None:
    rows = read_guarded(tmp_path, kind)
    assert_all_end_as_they_must(rows, hostile_inputs.KINDS[kind])
    assert max(row["seconds"] for row in rows) < SECONDS
    print(
        f"{len(rows)} {kind}; worst {max(row['seconds'] for row in rows):.2f} s,"
        f" {max(row['megabytes'] for row in rows):.0f} MB"
    )


def test_there_are_enough() -> None:
    assert sum(map(len, hostile_inputs.KINDS.values())) >= 60
