"""Outputs of backbones: tensors, or nested mappings, sequences, named tuples and dataclasses.

`torch.utils._pytree` and optree do not fit. They treat dataclasses, namespaces and classes of
mappings as leaves unless these were registered for the whole process.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dggraph.errors import InputError


def tensors_in(output: Any) -> list[Tensor]:
    """Return every tensor in `output`, in order."""
    return list(_walk(output))


def no_tensors(name: str) -> InputError:
    """Return the error for a backbone `name` whose output has no tensors."""
    return InputError(
        f"no tensor was found in what {name} returns, so nothing can be compared. Return a tensor,"
        " or tensors in a dict, a tuple or a dataclass."
    )


def structure_of(output: Any) -> Any:
    """Return the structure of `output`: its types, its keys, and the types of other leaves.

    Values do not count, so outputs of equal form have equal structures.
    """
    if isinstance(output, Tensor):
        return Tensor
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return type(output), tuple(
            (field.name, structure_of(getattr(output, field.name)))
            for field in dataclasses.fields(output)
        )
    if isinstance(output, Mapping | SimpleNamespace):
        named = output if isinstance(output, Mapping) else vars(output)
        return type(output), tuple((key, structure_of(part)) for key, part in named.items())
    if isinstance(output, list | tuple):
        return type(output), tuple(structure_of(part) for part in output)
    return type(output)


def join_outputs(outputs: Sequence[Any]) -> Any:
    """Join the outputs of several batches into one of the same structure.

    Parts that are not tensors are taken from the first output.

    Raises:
        InputError: A part has an unknown type.
    """
    first = outputs[0]
    if len(outputs) == 1 or first is None or isinstance(first, bool | int | float | str):
        return first
    if isinstance(first, Tensor):
        return torch.cat([*outputs]) if first.ndim else first
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first) if field.init]
        return dataclasses.replace(
            first,
            **{name: join_outputs([getattr(output, name) for output in outputs]) for name in names},
        )
    if isinstance(first, SimpleNamespace):
        return SimpleNamespace(
            **{key: join_outputs([vars(output)[key] for output in outputs]) for key in vars(first)}
        )
    if isinstance(first, defaultdict):
        return defaultdict(
            first.default_factory,
            {key: join_outputs([output[key] for output in outputs]) for key in first},
        )
    if isinstance(first, Mapping):
        return type(first)(
            (key, join_outputs([output[key] for output in outputs])) for key in first
        )  # type: ignore[call-arg]
    if isinstance(first, list | tuple):
        parts = [join_outputs(part) for part in zip(*outputs, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise InputError(
        f"the backbone returns {type(first).__name__}, which cannot be joined from several batches."
        " Record with batch_size=len(x), or return tensors in a dict, a tuple or a dataclass."
    )


def _walk(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from _walk(getattr(output, field.name))
    elif isinstance(output, Mapping | list | tuple | SimpleNamespace):
        for part in _parts(output):
            yield from _walk(part)


def _parts(output: Any) -> Iterable[Any]:
    if isinstance(output, SimpleNamespace):
        return vars(output).values()
    return output.values() if isinstance(output, Mapping) else output
