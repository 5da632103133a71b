"""Names with arguments in brackets in options and configurations.

Arguments are numbers, then options by name: `window(4)+entry`, `stage(16, inputs=pool+std)`.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from dggraph.errors import InputError

Made = TypeVar("Made")
Value = int | float | bool | str
_ORDERED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Spec(NamedTuple):
    """A name and its arguments."""

    name: str
    numbers: tuple[int | float, ...] = ()
    options: Mapping[str, Value] = MappingProxyType({})
    """Arguments by name: numbers, true or false, or words."""


def read_spec(text: str) -> Spec:
    """Parse `text` into a name and its arguments; without brackets there are none.

    Raises:
        InputError: It has another form.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise InputError(f"{text!r} is neither a name nor a name with numbers in brackets.")
    inside = (match.group(2) or "").strip().removesuffix(",")
    numbers: list[int | float] = []
    options: dict[str, Value] = {}
    for part in inside.split(",") if inside else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and options:
            raise InputError(f"{text!r}: {key!r} comes after options by name; write it first.")
        if not equals:
            numbers.append(_number(key, text))
        elif not key.isidentifier() or not value:
            raise InputError(f"{text!r}: {part.strip()!r} is not an option. Write name=value.")
        elif key in options:
            raise InputError(f"{text!r} gives {key!r} twice.")
        else:
            options[key] = _value(value)
    return Spec(match.group(1), tuple(numbers), options)


def read_sum(text: str) -> tuple[Spec, ...]:
    """Parse names with arguments that are joined by `+`, such as `window(4)+entry`.

    Raises:
        InputError: A part has another form.
    """
    return tuple(read_spec(part) for part in re.split(r"\+(?![^(]*\))", text))


def read_known(option: str, text: str, known: Collection[str], *, example: str) -> Spec:
    """Parse the value of `option`, whose name must be one of `known`.

    Args:
        option: What the value is for, such as `router`; errors begin with it.
        text: The value.
        known: The registered names.
        example: The end of the errors: what may be written.

    Raises:
        InputError: It has another form, or another name.
    """
    name = text.strip()
    if name:
        try:
            spec = read_spec(text)
        except InputError as error:
            raise InputError(f"{option}: {error} {example}") from error
        if spec.name in known:
            return spec
        name = spec.name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else example
    raise InputError(f"{option}={text!r} is not one of {', '.join(known)}. {hint}")


def bind(spec: Spec, make: Callable[..., Made], *, num_taken: int = 0) -> Callable[..., Made]:
    """Return a function that calls `make` with its own arguments, then with those of `spec`.

    Args:
        spec: The parsed option.
        make: The function with this name. Its annotations say what each argument is: `int`,
            `float`, `bool`, `str`, or one of a `Literal`; without one, anything goes.
        num_taken: Number of arguments of `make` before those of `spec`.

    Raises:
        InputError: There are too few or too many numbers, an option is unknown, or an argument is
            of another kind; the error has the names in the signature.
    """
    try:
        found = list(_signature(make).parameters.values())[num_taken:]
    except (TypeError, ValueError):  # written in C
        return partial(_call, make, spec)
    _refuse_unknown(spec, found)
    _refuse_numbers(spec, found)
    ordered = [one for one in found if one.kind in _ORDERED]
    given = dict(zip((one.name for one in ordered), spec.numbers, strict=False))
    if twice := next((name for name in spec.options if name in given), None):
        raise InputError(f"{spec.name!r} gets {twice!r} twice: in order, and by name.")
    kinds = {one.name: one.annotation for one in found}
    for name, value in (given | dict(spec.options)).items():
        if wrong := _wrong(kinds.get(name), value):
            raise InputError(f"{spec.name}({name}={_written(value)}): {wrong}")
    return partial(_call, make, spec)


def _call(make: Callable[..., Made], spec: Spec, *taken: Any, **named: Any) -> Made:
    return make(*taken, *spec.numbers, **spec.options, **named)


def _signature(make: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(make, eval_str=True)
    except NameError:  # an annotation that is not to be had here
        return inspect.signature(make)


def _refuse_unknown(spec: Spec, found: list[inspect.Parameter]) -> None:
    names = [one.name for one in found if one.kind in _NAMED]
    if any(one.kind is one.VAR_KEYWORD for one in found):
        return
    unknown = next((name for name in spec.options if name not in names), None)
    if unknown is None:
        return
    close = difflib.get_close_matches(unknown, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = f"its options are {', '.join(names)}." if names else "it has no options."
    raise InputError(f"{spec.name!r} has no option {unknown!r}; {known}{hint}")


def _refuse_numbers(spec: Spec, found: list[inspect.Parameter]) -> None:
    if any(one.kind is one.VAR_POSITIONAL for one in found):
        return
    taken = [one for one in found if one.kind in _ORDERED]
    needed = [one for one in found if one.default is one.empty and one.kind in (*_ORDERED, *_NAMED)]
    num_needed = sum(one.kind in _ORDERED for one in needed)
    given = {one.name for one in taken[: len(spec.numbers)]} | set(spec.options)
    if len(spec.numbers) <= len(taken) and all(one.name in given for one in needed):
        return
    number = f"{num_needed}" if num_needed == len(taken) else f"{num_needed} to {len(taken)}"
    names = ", ".join(one.name for one in taken)
    what = (
        f"takes {number} number{'' if len(taken) == 1 else 's'} in brackets, {spec.name}({names})"
        if taken
        else "takes no numbers in brackets"
    )
    missing = [one.name for one in needed if one.name not in given and one not in taken]
    also = f" It needs {missing[0]!r}." if missing else ""
    named = [one.name for one in found if one.kind is one.KEYWORD_ONLY]
    if named and not taken:
        also += f" Write its options by name: {named[0]}=VALUE."
    raise InputError(f"{spec.name!r} {what}, and got {len(spec.numbers)}.{also}")


def _wrong(kind: Any, value: Value) -> str:
    """Return why `value` is not of the annotated `kind`, or nothing if it is."""
    if get_origin(kind) is Literal:
        known = [str(one) for one in get_args(kind)]
        if _written(value) in known:
            return ""
        close = difflib.get_close_matches(_written(value), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"it must be one of {', '.join(known)}.{hint}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int and not (is_number and isinstance(value, int)):
        return f"{_written(value)} must be a whole number."
    if kind is float and not is_number:
        return f"{_written(value)} must be a number."
    if kind is bool and not isinstance(value, bool):
        return f"{_written(value)} must be true or false."
    return ""


def _written(value: Value) -> str:
    """Return `value` as it is written in a spec."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _number(part: str, text: str) -> int | float:
    value = _value(part)
    if isinstance(value, bool | str):
        raise InputError(f"{text!r}: arguments must be numbers, and {part!r} is none.")
    return value
