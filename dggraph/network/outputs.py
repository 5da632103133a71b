"""What a backbone returns: tensors, alone or in mappings, sequences, named tuples and dataclasses,
nested as it likes.

Walked here and not by `torch.utils._pytree` or optree: both take dataclasses, namespaces and
classes of mappings that nobody registered, for the whole process, for leaves.
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
    """Every tensor in `output`, in order."""
    return list(_walk(output))


def structure_of(output: Any) -> Any:
    """What `output` is besides its tensors' values: its types, its keys, and what is not a tensor.
    Two outputs alike have equal ones.
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
    """Outputs of several batches as one, in the structure they have; what is not a tensor is taken
    from the first.

    Raises:
        InputError: a part is of a type that cannot be looked into.
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
