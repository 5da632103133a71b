"""Paths that no shell has seen, as their writer meant them: `~`, and letters with accents, which
file systems store in two ways.
"""

import os
import unicodedata
from pathlib import Path

from dggraph.errors import InputError


def locate(path: str | os.PathLike[str]) -> Path:
    """`path` with `~` as the home folder, and each part as it is spelt on the disk.

    "é" may be one character (NFC) or two (NFD, as macOS and many archives have it). A part that is
    not there, but is there in the other spelling, is taken so; what is nowhere stays as written.

    Args:
        path: from a configuration or the command line.

    Raises:
        InputError: it has a variable that only a shell replaces.
    """
    text = os.path.expanduser(os.fspath(path))
    if os.path.expandvars(text) != text and not os.path.lexists(text):
        raise InputError(
            f"the path {text!r} has a variable in it, which only a shell would replace. Write the"
            " path out; ~ is the home folder."
        )
    found = Path(text)
    if os.path.lexists(found) or text.isascii():
        return found
    place = Path(found.anchor)
    for part in found.parts[1:] if found.anchor else found.parts:
        place /= part if os.path.lexists(place / part) else _spelling(place, part)
    return place


def decode_text(content: bytes) -> str:
    """A text file as its editor meant it: UTF-8 with or without a byte-order mark, or UTF-16 with
    one; Windows' line ends as \\n.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n")


def _spelling(folder: Path, name: str) -> str:
    """The entry of `folder` that reads as `name` does; `name` itself where there is none, or more
    than one.
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
