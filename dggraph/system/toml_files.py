"""TOML files that people write, with errors that say how to mend them."""

import re
from pathlib import Path
from typing import Any

from dggraph.errors import InputError
from dggraph.system.files import read_at_most
from dggraph.system.paths import decode_text

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found,no-redef]


def read_toml(file: Path) -> dict[str, Any]:
    """Return the keys of `file`.

    Raises:
        OSError: it cannot be read, or is too large.
        InputError: it is not text, or not TOML.
    """
    content = read_at_most(file)
    try:
        text = decode_text(content)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    try:
        return dict(tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # not TOML, or too many digits or brackets
        raise InputError(f"{file} is not TOML: {error}.{_on_backslashes(text, error)}") from error


def _on_backslashes(text: str, error: Exception) -> str:
    """Return a hint if the line of the error has a backslash, as Windows paths do."""
    found = re.search(r"at line (\d+)", str(error))
    lines = text.split("\n")
    line = lines[int(found.group(1)) - 1] if found and int(found.group(1)) <= len(lines) else ""
    if "\\" not in line:
        return ""
    return (
        ' In "..." a backslash starts an escape: write a Windows path in single quotes,'
        " 'C:\\data', or with /, \"C:/data\"."
    )
