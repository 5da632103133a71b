"""Writes that are whole or not there: a process is killed at every step of them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dggraph.errors import InputError
from dggraph.system import files
from dggraph.system.files import NEW, part_of, write_folder, write_whole

KILLING = """
import os, signal, sys
from pathlib import Path
from dggraph.system.files import write_folder, write_whole

left = [int(sys.argv[1])]

def killing(real):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

for name in ("open", "fsync", "rename", "replace", "rmdir", "mkdir"):
    setattr(os, name, killing(getattr(os, name)))
"""
"""A process that kills itself before its n-th change of the file system."""


def run(step: int, code: str) -> int:
    command = [sys.executable, "-c", KILLING + code, str(step)]
    return subprocess.run(command, check=False).returncode


def contents(folder: Path) -> dict[str, bytes]:
    """What readers see of `a` and `b`."""
    return {name: part_of(folder, name).read_bytes() for name in ("a", "b")}


def write(folder: Path, text: str) -> None:
    parts = [("a", f"{text} a".encode()), ("b", f"{text} b".encode())]
    write_folder(folder, parts, scratch_prefix=".saving-")


def test_a_folder_is_the_old_one_or_the_new_one_wherever_its_writer_is_killed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    old, new = ({"a": f"{text} a".encode(), "b": f"{text} b".encode()} for text in ("old", "new"))
    found, step, code = [], 0, -9
    while code == -9:
        write(folder, "old")  # which also ends what the killed process began
        assert contents(folder) == old
        assert sorted(file.name for file in folder.iterdir()) == ["a", "b"]
        step += 1
        code = run(
            step,
            f"write_folder(Path({str(folder)!r}), "
            "[('a', b'new a'), ('b', b'new b')], scratch_prefix='.saving-')",
        )
        assert contents(folder) in (old, new), f"killed at step {step}"
        found.append(contents(folder) == new)
    assert code == 0
    assert contents(folder) == new
    assert found == sorted(found)
    assert found.count(True) >= 4  # after the rename, in each move
    assert sorted(file.name for file in folder.iterdir()) == ["a", "b"]


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    folder, step, code = tmp_path / "folder", 0, -9
    while code == -9:
        step += 1
        code = run(
            step,
            f"write_folder(Path({str(folder)!r}), "
            "[('a', b'new a'), ('b', b'new b')], scratch_prefix='.saving-')",
        )
        if folder.exists():
            assert contents(folder) == {"a": b"new a", "b": b"new b"}
            break
    assert step > 4


def test_a_file_is_the_old_one_or_the_new_one_wherever_its_writer_is_killed(
    tmp_path: Path,
) -> None:
    file, step, code = tmp_path / "file", 0, -9
    while code == -9:
        file.write_bytes(b"old")
        step += 1
        code = run(step, f"write_whole(Path({str(file)!r}), b'new')")
        assert file.read_bytes() in (b"old", b"new")
    assert code == 0
    assert file.read_bytes() == b"new"


def test_other_files_of_a_folder_stay(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    write(tmp_path / "folder", "new")
    assert contents(tmp_path / "folder") == {"a": b"new a", "b": b"new b"}
    assert (tmp_path / "folder" / "notes.txt").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_parts_that_cannot_be_made_leave_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "folder", "old")

    def failing() -> object:
        yield "a", b"new a"
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        write_folder(tmp_path / "folder", failing(), scratch_prefix=".saving-")  # type: ignore[arg-type]
    assert contents(tmp_path / "folder") == {"a": b"old a", "b": b"old b"}
    assert not (tmp_path / "folder" / NEW).exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write '.*missing/file'"):
        write_whole(tmp_path / "missing" / "file", b"")


def test_a_file_gets_the_mode_that_the_user_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


WRITERS = {
    "comparing/queue.py": "a job and a log, which a restarted queue writes again",
    "comparing/rows.py": "rows, whose torn end is cut off",
    "ops/kernels.py": "in a folder that is renamed when it is whole",
    "system/files.py": "what these tests are about",
    "system/locks.py": "who holds a lock",
    "training/metrics.py": "rows, whose torn end is cut off",
}


def is_a_write(call: ast.Call) -> bool:
    """Whether a call writes a file, or opens one for that."""
    name = ast.unparse(call.func).split(".")[-1]
    modes = [one for one in call.args if isinstance(one, ast.Constant)]
    is_opening = name == "open" and any(
        isinstance(one.value, str) and set("wax+") & set(one.value) and len(one.value) <= 3
        for one in modes
    )
    return name in ("write_text", "write_bytes") or is_opening


def test_whatever_else_is_written_is_written_whole() -> None:
    """So that each kind of file is the old one or the new one when its writer is killed."""
    package = Path(files.__file__).parents[1]
    found = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and is_a_write(node)
    }
    assert found == set(WRITERS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    """Renaming a file to /dev/stdout would take it from every program, if root does it."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=f"{name}': it is a device or a pipe"):
            write_whole(tmp_path / name, b"content")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "pipe"]
