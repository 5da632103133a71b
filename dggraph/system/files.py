"""Durable files: synced to disk before a write returns, and replaced atomically.

A file is replaced by one rename, which is atomic in every file system. A folder cannot be: a rename
does not replace a folder that has files, and a process killed between two renames would leave
nothing at its path. An existing folder is therefore replaced from within:

1. The new parts are written to a scratch folder and synced.
2. One rename makes that folder its subfolder `.new`. From here on the new parts are valid:
   `part_of` looks there first.
3. The parts are moved out of `.new` over the old ones, one by one. If the process is killed here,
   the next writer finishes this. Readers find every new part in one place or the other.
"""

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dggraph.errors import InputError

MAX_TEXT_BYTES = 64 * 1024 * 1024
NEW = ".new"
"""Subfolder of a folder that is being replaced."""


def write_synced(file: Path, content: bytes) -> None:
    """Write a new file and sync it to disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def write_whole(file: Path, content: bytes) -> None:
    """Replace the content of `file` atomically.

    Readers see the old file or the new one, even after a crash.

    Raises:
        InputError: The file cannot be written; either the old file or the new one is there. Or
            `file` is a device or a pipe, which the rename would remove from the system.
    """
    if file.exists() and not (file.is_file() or file.is_dir()):
        raise InputError(
            f"cannot write {str(file)!r}: it is a device or a pipe, and files are written beside"
            " their place and renamed. Choose the name of a file."
        )
    scratch = file.with_name(f".{file.name[:80]}.{secrets.token_hex(4)}")
    try:
        try:
            write_synced(scratch, content)
            os.replace(scratch, file)
        finally:
            scratch.unlink(missing_ok=True)
        sync_folder(file.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {str(file)!r}: {error.strerror or error}. No partial file is left"
            " there. Choose another place, or make room."
        ) from error


def write_folder(folder: Path, parts: Iterable[tuple[str, bytes]], *, scratch_prefix: str) -> None:
    """Write a folder of files atomically.

    Readers that use `part_of` see all old parts or all new ones, even after a crash. Files with
    other names in the folder stay.

    Args:
        folder: A new folder, or one to replace; its parent must exist.
        parts: Names and contents. Each is requested after the one before is on disk.
        scratch_prefix: First characters in the name of the scratch folder beside it, which stays
            only if the process is killed.

    Raises:
        OSError: The folder cannot be written; either all old parts or all new ones are there.
    """
    with tempfile.TemporaryDirectory(prefix=scratch_prefix, dir=folder.parent) as scratch:
        ready = Path(scratch, "new")
        ready.mkdir()
        for name, content in parts:
            write_synced(ready / name, content)
        sync_folder(ready)
        if folder.is_dir():
            _move_new_parts(folder)  # left by a killed process; `.new` must not exist
            os.rename(ready, folder / NEW)
            sync_folder(folder)
            _move_new_parts(folder)
        else:
            os.rename(ready, folder)
            sync_folder(folder.parent)


def part_of(folder: Path, name: str) -> Path:
    """Return the path of the part `name` of a folder written by `write_folder`."""
    new = folder / NEW / name
    return new if new.is_file() else folder / name


def _move_new_parts(folder: Path) -> None:
    new = folder / NEW
    if not new.is_dir():
        return
    for part in sorted(new.iterdir()):
        os.replace(part, folder / part.name)
    new.rmdir()
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, which makes renames in it durable.

    Windows and some network file systems do not support this.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def read_at_most(file: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a file of text that comes from others, which may have no end.

    Raises:
        OSError: The file cannot be read, or has more than `limit` bytes.
    """
    with file.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(file))
    return content


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
