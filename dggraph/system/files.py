"""Files that last: written and synced before anything is called done, replaced as a whole."""

import hashlib
import os
import tempfile
from pathlib import Path

from dggraph.errors import InputError


def write_synced(file: Path, content: bytes) -> None:
    """Write a new file through to the disk."""
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """A rename lasts once its folder is on the disk; Windows knows no such thing."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(file: Path, content: bytes) -> None:
    """Replace `file` by `content`; readers see the old one or the new one, even after a crash.

    Raises:
        InputError: it cannot be written; what was there is unchanged.
    """
    try:
        handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:80]}.")
        os.close(handle)
        try:
            write_synced(Path(scratch), content)
            os.chmod(scratch, 0o644)
            os.replace(scratch, file)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write {str(file)!r}: {error.strerror or error}. What was there before is"
            " unchanged."
        ) from error


def sha256_of(file: Path) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
