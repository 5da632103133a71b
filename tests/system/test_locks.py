"""Locks: one run a folder, told who has it; a lock ends with its holder, not with its loaders."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dggraph.errors import InputError
from dggraph.system.locks import locked

HOLDING = """
import os, sys, time
from pathlib import Path
from dggraph.system.locks import locked

with locked(Path(sys.argv[1])):
    if sys.argv[2] == "forking":
        has_forked, forked = os.pipe()
        if os.fork() == 0:  # a child that has begun to run holds no lock
            os.write(forked, b"!")
            time.sleep(60)
        os.read(has_forked, 1)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "kind",
    [
        "alone",
        pytest.param(
            "forking",
            marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
        ),
    ],
)
def test_a_holder_is_named_and_its_lock_ends_with_it(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", HOLDING, str(tmp_path), kind]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            holder = process.stdout.readline().strip()
            with (
                pytest.raises(InputError, match=f"another run, process {holder} on "),
                locked(tmp_path),
            ):
                pass
            process.kill()
            process.wait()
            with locked(tmp_path):
                assert (tmp_path / "lock.holder").read_text().startswith(f"process {os.getpid()}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its child too


def test_a_lock_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            assert (tmp_path / "lock.holder").read_text().startswith(f"process {os.getpid()}")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"cannot write to the folder .*file"),
        locked(tmp_path / "file"),
    ):
        pass


def test_a_holder_that_cannot_be_named_is_told_with_the_folder(tmp_path: Path) -> None:
    """As on a full disk, where an empty lock file can still be made."""
    (tmp_path / "lock.holder").mkdir()
    with (
        pytest.raises(InputError, match=rf"cannot write to the folder {re.escape(str(tmp_path))}"),
        locked(tmp_path),
    ):
        pass
    (tmp_path / "lock.holder").rmdir()
    with locked(tmp_path):
        pass
