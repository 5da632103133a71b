"""Kinds of arguments and flags: paths as their writer meant them, whole numbers in any spelling."""

from pathlib import Path
from typing import Any

import click

from dggraph.system.paths import locate


class LocatedPath(click.Path):
    """A path, by `locate`.

    Args:
        dir_okay: whether it may be a folder that is there.
    """

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `Path`."""
        return super().convert(locate(value), param, ctx)


class WholeNumber(click.IntRange):
    """A whole number; scripts that compute in floats write 64 as 64.0."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An `int` within the bounds."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = 0.5
        return super().convert(
            int(number) if number.is_integer() and not str(value).isdecimal() else value, param, ctx
        )


def locate_model(_context: click.Context, _parameter: click.Parameter, model: str) -> str:
    """A callback for MODEL, which is a name or a folder."""
    return model if model.isascii() and not model.startswith("~") else str(locate(model))
