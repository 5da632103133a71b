"""Whether modules still consist of the same objects.

A network asks this before each pass, and a small network takes only a few milliseconds. So one call
of C code reads all values of a dictionary, and another compares all of them: Python compares two
lists by pointer first, which takes a nanosecond for each item.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

Values = Iterable[tuple[Mapping[str, Any], str, Any]]
"""A dictionary of a module, a key in it, and the object at that key, None for none."""


class Identities:
    """Objects that were found, to be compared with what is there later.

    Args:
        values: What the dictionaries of modules have.
        modules: Modules whose class must stay.
        tables: Dictionaries whose keys must stay.
    """

    def __init__(
        self,
        values: Values = (),
        modules: Iterable[nn.Module] = (),
        tables: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self.tables = list(tables)
        self.sizes = [len(table) for table in self.tables]
        self.modules = list(modules)
        self.classes = [type(module) for module in self.modules]
        self.absent: list[tuple[Mapping[str, Any], str]] = []
        self.alike: list[tuple[Mapping[str, Any], str, Any]] = []
        has_size = set(map(id, self.tables))
        by_owner: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}
        for owner, key, value in values:
            if value is None and key not in owner:
                if id(owner) not in has_size:
                    self.absent.append((owner, key))
            elif _differs_from_others(value):
                by_owner.setdefault(id(owner), (owner, {}))[1][key] = value
            else:
                self.alike.append((owner, key, value))
        self.readers = [(_reader(tuple(found)), owner) for owner, found in by_owner.values()]
        self.values = [_twice(tuple(found.values())) for _, found in by_owner.values()]

    def hold(self) -> bool:
        """Whether every object is still the same."""
        try:
            if [read(owner) for read, owner in self.readers] != self.values:
                return False
        except (KeyError, RuntimeError, TypeError, ValueError):  # tensors cannot be compared
            return False
        return (
            list(map(len, self.tables)) == self.sizes
            and list(map(type, self.modules)) == self.classes
            and not any(key in owner for owner, key in self.absent)
            and all(owner.get(key) is value for owner, key, value in self.alike)
        )


class Contents:
    """Tensors that were read, to notice whether they were written since.

    Args:
        tensors: No inference tensors, which do not count how often they are written.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = list(tensors)
        self.marks = self._marks()

    def hold(self) -> bool:
        """Whether nothing was written. Writes to `tensor.data` in place are not counted."""
        return self._marks() == self.marks

    def _marks(self) -> tuple[list[int], list[int]]:
        return list(map(_version, self.tensors)), list(map(Tensor.data_ptr, self.tensors))


_version = operator.attrgetter("_version")


def _differs_from_others(value: Any) -> bool:
    """Whether `==` tells `value` from every other object that may stand in its place.

    It may also raise: a comparison of two tensors has no truth value, unless it has one element.
    """
    if isinstance(value, Tensor):
        return value.numel() != 1
    return is_literal(value) or vars(object)["__eq__"] is type(value).__eq__


def is_literal(value: Any) -> bool:
    """Whether `value` is immutable and generated code can print it."""
    if type(value) is tuple:
        return all(map(is_literal, value))
    return value is None or type(value) in (bool, int, float, str)


@cache
def _reader(keys: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Return a function that reads all `keys` of a dictionary; one for all modules of a class."""
    return operator.itemgetter(*_twice(keys))


def _twice(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return two of a single item, since `itemgetter` returns no tuple for a single key."""
    return items * 2 if len(items) == 1 else items
