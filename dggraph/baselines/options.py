"""Checks of the methods' options."""

from dggraph.errors import InputError


def at_least(name: str, value: object, least: int) -> None:
    """Raise InputError unless `value` is a whole number of at least `least`."""
    if type(value) is not int or value < least:
        raise InputError(f"{name}={value!r} is not a whole number of at least {least}.")


def above_zero(name: str, value: object) -> None:
    """Raise InputError unless `value` is a finite number above 0."""
    if type(value) not in (int, float) or not 0 < float(str(value)) < float("inf"):
        raise InputError(f"{name}={value!r} is not a number above 0.")


def one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `known`."""
    if value not in known:
        raise InputError(f"{name}={value!r} is not one of {', '.join(known)}.")
