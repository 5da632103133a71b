"""Whatever is written, a writer that is killed leaves the old one or the new one, whole, and the
next one goes on from there.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killed_writers
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of a process")


KINDS = tuple(killed_writers.WRITERS)


def kill_writers(folder: Path, count: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    command = [sys.executable, killed_writers.__file__, str(folder), "0", str(count)]
    done = subprocess.run(
        [*command, *kinds],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_all_are_whole(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["has_died"], row
        assert row["is_whole"], row
        assert row["keeps"], row
        assert row["goes_on"], row


def test_a_kill_of_each_kind(tmp_path: Path) -> None:
    """But exports, which take seconds; they are written as pictures are."""
    kinds = [kind for kind in KINDS if kind != "exported"]
    rows = kill_writers(tmp_path, 1, kinds)
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(kinds, 2)
    assert_all_are_whole(rows)


@pytest.mark.attack
def test_a_kill_at_every_change(tmp_path: Path) -> None:
    rows = kill_writers(tmp_path, sys.maxsize, KINDS)
    assert_all_are_whole(rows)
    for kind in KINDS:
        found = [row["is_new"] for row in rows if row["kind"] == kind]
        assert True in found, f"{kind}: some kills come after the new one is there"
        assert False in found, f"{kind}: some come before"
    print(f"{len(rows)} kills in {len(KINDS)} kinds")
