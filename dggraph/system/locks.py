"""A lock that allows one run per folder; the operating system releases it when its process ends."""

import errno
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dggraph.errors import DggraphWarning, InputError

LOCK, HOLDER = "lock", "lock.holder"
"""The locked file, and a file that names the holder, since Windows cannot read a locked file."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` against other processes within this context.

    Loader processes do not inherit the lock (filelock 4 ensures this), so it ends with this
    process. If the file system has no locks, a warning is given.

    Raises:
        InputError: Another process has the lock, or the lock file cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder} is being written by another run, {_holder(folder)}. Two runs would overwrite"
            " each other's checkpoints. Wait for it, stop it, or choose another experiment."
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise _unwritable(folder, error) from error
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror or error}), so nothing"
            " stops a second run from writing there.",
            DggraphWarning,
            stacklevel=3,
        )
    try:
        _name_holder(folder)
        yield
    finally:
        lock.release()


def _name_holder(folder: Path) -> None:
    who = f"process {os.getpid()} on {platform.node()}\n"
    try:
        (folder / HOLDER).write_text(who, encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write to the folder {folder}: {error.strerror or error}. Make room, or choose"
        " another output."
    )


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text(encoding="utf-8").strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
