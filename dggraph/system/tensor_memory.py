"""The memory that torch allocates in a function, tensor by tensor: its peak, or a limit.

The memory of a process on a CPU is mostly torch and the data set, and a system gives it back when
it likes. So this counts the storages that operations return while they live, on any device. The
count is the same in every run.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dggraph.system.torch_private import TorchDispatchMode, tree_leaves


class TensorMemoryError(MemoryError):
    """More bytes of tensors would live at one time than `at_most_bytes` allows."""


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living storages that operations returned."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = limit
        self.living: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        for tensor in tree_leaves(output):
            if _is_tensor(tensor) and _key(tensor) not in given:
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage.data_ptr()
        if key in self.living or not key:
            return
        self.living[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        if self.now > self.limit:
            raise TensorMemoryError(f"more than {self.limit / 1e6:.0f} MB of tensors are needed")
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.living.pop(key, 0)


def peak_bytes(run: Callable[[], object]) -> int:
    """Call `run`, and return the most bytes of tensors that it made and that lived at one time."""
    with _Counter() as counter:
        run()
    peak: int = counter.peak
    return peak


@contextmanager
def at_most_bytes(limit: float) -> Iterator[None]:
    """Within this context, stop the operation after which more bytes of new tensors live.

    Memory that is only reserved, as `torch.empty` does, is counted before it is filled.

    Raises:
        TensorMemoryError: more than `limit` bytes live, or the system has too few for one tensor.
    """
    try:
        with _Counter(limit):
            yield
    except RuntimeError as error:
        if "allocate" not in str(error) and "overflow" not in str(error):
            raise
        raise TensorMemoryError(str(error).splitlines()[0]) from error


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _key(tensor: torch.Tensor) -> int:
    key: int = tensor.untyped_storage().data_ptr()
    return key
