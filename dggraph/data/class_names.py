"""Class names as text that any JSON reader accepts, for archives, checkpoints and reports."""

import operator
import os
import unicodedata
from collections.abc import Iterable

from dggraph.errors import InputError


def as_text(names: Iterable[object]) -> tuple[str, ...]:
    r"""Return `names` as text.

    Numbers are printed. Bytes, and names of files that are not UTF-8, get escapes such as `\\xe9`.
    Accented letters are composed (NFC), so that both spellings of "é" are one class.

    Args:
        names: class names by label, from folders, annotations, or a user's function.

    Raises:
        InputError: a name cannot become text, for example None; names it.
    """
    return tuple(_as_text(name, label) for label, name in enumerate(names))


def describe_renamed(names: Iterable[object], texts: Iterable[str]) -> list[str]:
    """Return a sentence if `as_text` changed more than the spelling of accents, else nothing."""
    changed = [
        (name, text)
        for name, text in zip(names, texts, strict=True)
        if not isinstance(name, str) or unicodedata.normalize("NFC", name) != text
    ]
    if not changed:
        return []
    name, text = changed[0]
    return [
        f"names of {len(changed)} classes are not UTF-8 text, and were converted: {name!r} is now"
        f" {text!r}"
    ]


def _as_text(name: object, label: int) -> str:
    if isinstance(name, str):
        name = os.fsencode(name) if not name.isascii() else str(name)
    if isinstance(name, bytes):
        name = unicodedata.normalize("NFC", name.decode("utf-8", "backslashreplace"))
    if isinstance(name, str):
        return name
    if isinstance(name, float):
        return repr(float(name))
    try:
        return str(operator.index(name))  # type: ignore[arg-type]
    except TypeError:
        raise InputError(
            f"class {label} is called {name!r}, a {type(name).__name__}, which is not text. Give"
            " the classes names, for example ('cat', 'dog')."
        ) from None
