"""Every key of a configuration as a flag.

`batch_size` is --batch-size, `model_ema` is --model-ema / --no-model-ema. This is our own code
because click makes no options from a pydantic model. Flags that are not given are None, and
override nothing. The file imports pydantic only, never torch: `--help` must be quick.
"""

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dggraph.cli.parameters import LocatedPath, Number, WholeNumber
from dggraph.cli.sections import SectionedOption
from dggraph.training.config import TrainConfig

FIRST_KEYS = {
    "task": "Model",
    "wiring": "Routing",
    "dataset": "Data",
    "scale": "Augmentation",
    "epochs": "Optimisation",
    "workers": "Options",
    "opt": "Optimisation",
    "threshold": "Routing",
    "output": "Options",
}
"""Keys of a `TrainConfig` at which another section of the help begins."""

Function = TypeVar("Function", bound=Callable[..., Any])


def config_flags(function: Function) -> Function:
    """Decorate a command with a flag for each key of `TrainConfig`, in their order."""
    for flag in reversed(flags_of(TrainConfig)):
        function = flag(function)
    return function


def config_flags_for(*names: str) -> Callable[[Function], Function]:
    """Decorate a command with the flags of these keys of `TrainConfig`, shared with training."""

    def decorate(function: Function) -> Function:
        for name in reversed(names):
            flag = _flag(name, TrainConfig.model_fields[name], section_of(name))
            function = flag(function)
        return function

    return decorate


def flags_of(config_class: type[BaseModel]) -> list[Callable[[Function], Function]]:
    """Return a click option per field, with its type, bounds, description and default.

    A tuple of fixed length takes that many values (`--scale 0.08 1`), one of any length is given
    once for each (`--mean 0.5 --mean 0.5`).
    """
    return [
        _flag(name, field, section_of(name)) for name, field in config_class.model_fields.items()
    ]


def section_of(key: str) -> str:
    """The heading in the help of a key of `TrainConfig`; of any other key the last one."""
    section = "Options"
    if key in TrainConfig.model_fields:
        for name in TrainConfig.model_fields:
            section = FIRST_KEYS.get(name, section)
            if name == key:
                break
    return section


def _flag(name: str, field: FieldInfo, section: str) -> Callable[[Function], Function]:
    option = partial(click.option, cls=SectionedOption, section=section)
    dashed, kind = name.replace("_", "-"), _without_none(field.annotation)
    help = f"{field.description} {_default(field)}".strip()
    if kind is bool:
        return option(f"--{dashed}/--no-{dashed}", name, default=None, help=help)
    if get_origin(kind) is not tuple:
        return option(f"--{dashed}", name, type=_type(kind, field), default=None, help=help)
    first, *others = get_args(kind)
    if others == [...]:
        return option(
            f"--{dashed}",
            name,
            type=_number(first),
            multiple=True,
            callback=_none_if_empty,
            help=f"{help} Repeat it for each value.",
        )
    return option(
        f"--{dashed}", name, type=_number(first), nargs=1 + len(others), default=None, help=help
    )


def _type(kind: Any, field: FieldInfo) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return LocatedPath()
    if kind not in (int, float):
        assert kind is str, f"a field of type {kind} needs a kind of flag"
        return str
    bounds = {
        bound: getattr(limit, bound)
        for limit in field.metadata
        for bound in ("ge", "gt", "le", "lt")
        if hasattr(limit, bound)
    }
    if not bounds:
        return WholeNumber() if kind is int else Number()
    range_type = WholeNumber if kind is int else Number
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    return range_type(min=low, max=high, min_open="gt" in bounds, max_open="lt" in bounds)


def _number(kind: Any) -> Any:
    return WholeNumber() if kind is int else Number()


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    return annotation


def _none_if_empty(
    _context: click.Context, _parameter: click.Parameter, value: tuple[float, ...]
) -> tuple[float, ...] | None:
    return value or None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "[required, here or in CONFIG]"
    value = field.default
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "[default: on]" if value else "[default: off]"
    values = value if isinstance(value, tuple) else (value,)
    return (
        "[default:"
        f" {' '.join(f'{one:.4g}' if isinstance(one, float) else str(one) for one in values)}]"
    )
