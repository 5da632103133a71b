"""Escaping of text in pictures.

File names, labels and module paths are untrusted: nothing in them may become markup, code or a
terminal command. Every text is first made `visible`, then cut to the available width, then escaped
for the format it is written to.
"""

import unicodedata
from html import escape

from rich.text import Text

NARROW, MEDIUM = (
    frozenset("ijlI.,:;'|!()[]{} ft/\\"),
    frozenset('abcdeghknopqsuvxyzrL0123456789?_$*"+-×·'),
)


def visible(text: str) -> str:
    """Return `text` with invisible characters replaced.

    Control, direction and unassigned characters become U+FFFD, and line and paragraph separators
    become spaces.
    """
    if text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def text_width(text: str, size: float) -> float:
    """Return the approximate width of `text` in Helvetica of `size`, in pixels.

    East Asian wide characters are one em wide.
    """
    return size * sum(_em(character) for character in text)


def fit(text: str, size: float, width: float) -> str:
    """Return `text` made visible, without its middle if it is wider than `width`."""
    shown = visible(text[:2000])
    if text_width(shown, size) <= width:
        return shown
    keep = max(1, int(len(shown) * width / text_width(shown, size)))
    while keep > 1 and text_width(_shorten(shown, keep), size) > width:
        keep -= 1
    return _shorten(shown, keep)


def wrap(text: str, size: float, width: float) -> list[str]:
    """Return `text` on as many lines of words as it needs, at least one; each is made to `fit`."""
    lines = [""]
    for word in text.replace(" ·", "\N{NO-BREAK SPACE}·").split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [fit(line.replace("\N{NO-BREAK SPACE}·", " ·"), size, width) for line in lines]


def for_xml(text: str) -> str:
    """Return visible text for use between tags or in a quoted attribute."""
    return escape(visible(text))


def for_dot(text: str) -> str:
    r"""Return visible text as a DOT label that is printed literally.

    This holds for `\N`, `\l` and entities too.
    """
    return escape(visible(text), quote=False).replace("\\", "\\\\")


def for_mermaid(text: str) -> str:
    """Return visible text for a quoted Mermaid label.

    Letters, digits and a few signs stay, and all others are written by number (`#60;`).
    """
    return "".join(
        character if character.isalnum() or character in " ._-×·…" else f"#{ord(character)};"
        for character in visible(text)
    )


def for_terminal(text: str) -> Text:
    """Return visible text for rich, which would interpret `[/b]` or `:cat:` in a plain string."""
    return Text(visible(text))


def count(number: int) -> str:
    """Return a number of MACs with three digits, for example `1.23G`."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:  # which has four digits in the smaller unit
            return f"{number / size:.3g}{unit}"
    return str(number)


def plural(number: int, noun: str) -> str:
    """Return for example `1 edge` or `2 edges`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _visible_character(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Zl", "Zp"):
        return " "
    return "\N{REPLACEMENT CHARACTER}" if category[0] == "C" else character


def _em(character: str) -> float:
    if character in NARROW:
        return 0.3
    if character in MEDIUM:
        return 0.56
    return 1.0 if unicodedata.east_asian_width(character) in "WF" else 0.7


def _shorten(text: str, keep: int) -> str:
    head = (keep + 1) // 2
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"
