"""Names with numbers in brackets in options and configurations: `window(4)+entry`, `node(16)`."""

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dggraph.errors import InputError


class Spec(NamedTuple):
    """A name and its numbers."""

    name: str
    numbers: tuple[int | float, ...]


def read_spec(text: str) -> Spec:
    """Parse `text` into a name and its numbers; without brackets there are no numbers.

    Raises:
        InputError: It has another form.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise InputError(f"{text!r} is neither a name nor a name with numbers in brackets.")
    inside = (match.group(2) or "").strip().removesuffix(",")
    parts = [part.strip() for part in inside.split(",")] if inside else []
    return Spec(match.group(1), tuple(_number(part, text) for part in parts))


def read_sum(text: str) -> tuple[Spec, ...]:
    """Parse names with numbers that are joined by `+`, such as `window(4)+entry`.

    Raises:
        InputError: A part has another form.
    """
    return tuple(read_spec(part) for part in re.split(r"\+(?![^(]*\))", text))


def refuse_numbers(spec: Spec, make: Callable[..., Any], *, num_taken: int = 0) -> None:
    """Check that `make` accepts as many numbers as `spec` has.

    Args:
        spec: The parsed option.
        make: The function with this name.
        num_taken: Number of arguments of `make` before the numbers.

    Raises:
        InputError: There are too few or too many numbers; the error has the names in the signature.
    """
    try:
        found = list(inspect.signature(make).parameters.values())[num_taken:]
    except (TypeError, ValueError):  # written in C
        return
    if any(one.kind is one.VAR_POSITIONAL for one in found):
        return
    taken = [one for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    num_needed = sum(one.default is one.empty for one in taken)
    if num_needed <= len(spec.numbers) <= len(taken):
        return
    number = f"{num_needed}" if num_needed == len(taken) else f"{num_needed} to {len(taken)}"
    names = ", ".join(one.name for one in taken)
    what = (
        f"takes {number} number{'' if len(taken) == 1 else 's'} in brackets, {spec.name}({names})"
        if taken
        else "takes no numbers in brackets"
    )
    raise InputError(f"{spec.name!r} {what}, and got {len(spec.numbers)}.")


def _number(part: str, text: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(part)
        except ValueError:
            continue
    raise InputError(f"{text!r}: arguments must be numbers, and {part!r} is none.")
