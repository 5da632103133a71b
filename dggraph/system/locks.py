"""One run a folder: a lock that the operating system gives back however its holder ends."""

import errno
import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dggraph.errors import DggraphWarning, InputError

LOCK = "lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within this context no other process gets `folder`.

    A record lock: loader processes do not inherit it, so it ends with this process and not with
    them. Where the file system has no locks, a warning says so.

    Raises:
        InputError: another process has it, or the lock file cannot be written.
    """
    try:
        stream = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {folder}: {error.strerror or error}. Choose another"
            " output."
        ) from error
    with stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise InputError(
                    f"{folder} is being written by another run, {holder}; two would spoil each"
                    " other's checkpoints. Wait for it, stop it, or choose another experiment."
                ) from error
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror or error}), so nothing"
                " stops a second run from writing there.",
                DggraphWarning,
                stacklevel=3,
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}\n")
        stream.flush()
        yield
