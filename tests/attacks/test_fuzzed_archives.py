"""Archives changed at random in a guarded process: refused with `ArchiveError`, or without effect;
never another error, a stranger's code, a write, a second or two of work, much memory.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fuzzed_archives
import pytest

SECONDS, MEGABYTES = 2, 200
PAUSE = 2
"""Seconds of the wall for each archive, on average, before the process counts as hanging."""
WITH_EFFECT = "sealed"
"""The change that fits the digests: what loads may then be another archive."""


def fuzz(folder: Path, seed: int, count: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "error", fuzzed_archives.__file__, str(folder)]
    done = subprocess.run(
        [*command, str(seed), str(count)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300 + count * PAUSE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_all_are_refused_or_without_effect(rows: list[dict[str, Any]], count: int) -> None:
    assert len(rows) == count
    for row in rows:
        told = f"python {fuzzed_archives.__file__} FOLDER {row['seed']} 1: {row}"
        assert not row["refused"], told
        assert row["error"] in (None, "ArchiveError"), told
        assert row["error"] or row["is_equal"] or row["change"] == WITH_EFFECT, told
        assert row["megabytes"] < MEGABYTES, told


def test_some_changed_archives(tmp_path: Path) -> None:
    assert_all_are_refused_or_without_effect(fuzz(tmp_path, 0, 40), 40)


@pytest.mark.attack
@pytest.mark.parametrize("seed", [10_000, 20_000, 30_000, 40_000])
def test_thousands_of_changed_archives(tmp_path: Path, seed: int) -> None:
    rows = fuzz(tmp_path, seed, 800)
    assert_all_are_refused_or_without_effect(rows, 800)
    assert max(row["seconds"] for row in rows) < SECONDS
    num_refused = sum(row["error"] is not None for row in rows)
    print(
        f"{num_refused} of {len(rows)} refused; worst"
        f" {max(row['seconds'] for row in rows):.2f} s,"
        f" {max(row['megabytes'] for row in rows):.0f} MB"
    )
