"""Names of classes as archives, checkpoints and reports hold them: text that any JSON reader
takes.
"""

import operator
import os
import unicodedata
from collections.abc import Iterable

from dggraph.errors import InputError


def as_text(names: Iterable[object]) -> tuple[str, ...]:
    """`names` as text: numbers as they are printed, bytes and names of files that are not UTF-8
    with `\\xe9` where they are none.

    Letters with accents are put together (NFC): "é" of one disk and "é" of another are one class.

    Args:
        names: of classes, by label; from folders, annotations, or a function of the user's own.

    Raises:
        InputError: one has no text, for example None; names it.
    """
    return tuple(_as_text(name, label) for label, name in enumerate(names))


def tell_changed(names: Iterable[object], texts: Iterable[str]) -> list[str]:
    """A sentence where `as_text` has changed more than the spelling of accents."""
    changed = [
        (name, text)
        for name, text in zip(names, texts, strict=True)
        if not isinstance(name, str) or unicodedata.normalize("NFC", name) != text
    ]
    if not changed:
        return []
    name, text = changed[0]
    return [
        f"names of {len(changed)} classes are not text in UTF-8, and were made so: {name!r} is"
        f" called {text!r}"
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
            f"class {label} is called {name!r}, a {type(name).__name__}, which is not text. Name"
            " the classes of the data set, for example ('cat', 'dog')."
        ) from None
