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

    name = "integer"

    def _describe_range(self) -> str:  # without bounds click 8 says x<=None
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An `int` within the bounds."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = 0.5
        return super().convert(
            int(number) if number.is_integer() and not str(value).isdecimal() else value, param, ctx
        )


class Number(click.FloatRange):
    """A number, called so where it is none."""

    name = "number"

    def _describe_range(self) -> str:  # as above
        return "" if self.min is None and self.max is None else super()._describe_range()


class Device(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click alone
    """A device that torch can compute on here."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A `torch.device`."""
        import torch

        if isinstance(value, torch.device):
            return value
        try:
            device = torch.device(value)
        except (RuntimeError, TypeError):
            self.fail(f"{value!r} is not a device. Write cpu, cuda, cuda:1 or mps.", param, ctx)
        if device.type == "cuda":
            number = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if not number:
                self.fail("torch finds no CUDA GPU here. Leave it out, or write cpu.", param, ctx)
            if device.index is not None and device.index >= number:
                self.fail(f"there is no {value}: GPUs count from 0, and here are {number}.",
                          param, ctx)  # fmt: skip
        elif device.type == "mps":
            if not torch.backends.mps.is_available():
                self.fail("torch finds no Apple GPU here. Leave it out, or write cpu.", param, ctx)
        elif device.type != "cpu":
            self.fail(f"{value!r} cannot run networks. Write cpu, cuda, cuda:1 or mps.", param, ctx)
        return device


def locate_model(_context: click.Context, _parameter: click.Parameter, model: str) -> str:
    """A callback for MODEL, which is a name or a folder."""
    return model if model.isascii() and not model.startswith("~") else str(locate(model))
