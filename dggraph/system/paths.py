"""Paths that were not expanded by a shell: `~`, and accented letters in either Unicode form."""

import os
import unicodedata
from pathlib import Path

from dggraph.errors import InputError


def locate(path: str | os.PathLike[str]) -> Path:
    """Return `path`, which a person wrote, with `~` expanded and each part spelt as on disk.

    "é" may be one character (NFC) or two (NFD, used by macOS and many archives). A part that only
    exists in the other form is replaced by it. Parts that exist in neither stay unchanged.

    Args:
        path: A path from a configuration, the command line or a call. Names that were found on
            disk are not for this function: there `~` is a character like any other.

    Raises:
        InputError: The path is none, or has a variable that only a shell replaces.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise InputError(
            f"a path is needed, not {path!r}. Give a file or folder as text or pathlib.Path."
        )
    text = os.path.expanduser(os.fsdecode(path))
    if os.path.expandvars(text) != text and not os.path.lexists(text):
        raise InputError(
            f"the path {text!r} has a variable in it, which only a shell would replace. Write out"
            " the path; ~ is the home folder."
        )
    found = Path(text)
    if str(found).startswith("~") and not text.startswith("~"):  # "./~" keeps its meaning
        found = Path.cwd() / found
    if os.path.lexists(found) or text.isascii():
        return found
    place = Path(found.anchor)
    for part in found.parts[1:] if found.anchor else found.parts:
        place /= part if os.path.lexists(place / part) else _spelling(place, part)
    return place


def cache_folder() -> Path:
    """Return the folder of files that can be made again, in the user's cache; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dggraph"


def decode_text(content: bytes) -> str:
    """Decode a text file and convert Windows line ends.

    The encoding is UTF-8 with or without a byte-order mark, or UTF-16 with one.

    Raises:
        UnicodeDecodeError: The content is in another encoding.
    """
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n")


def _spelling(folder: Path, name: str) -> str:
    """Return the entry of `folder` that equals `name` up to its Unicode form.

    The result is `name` itself if there are none or several.
    """
    try:
        entries = os.listdir(folder or ".")
    except OSError:
        return name
    same = [
        entry
        for entry in entries
        if unicodedata.normalize("NFC", entry) == unicodedata.normalize("NFC", name)
    ]
    return same[0] if len(same) == 1 else name
