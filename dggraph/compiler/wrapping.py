"""Functions that a trace calls as single ops: it records their arguments, not their code.

`torch.arange(x.shape[1])`, `np.prod(x.shape[1:])` and scripted functions do not accept traced
values. Helpers of other libraries (einops, timm) whose Python code depends on sizes run with the
real sizes instead.
"""

import functools
import sys
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import fx

FACTORIES: tuple[Callable[..., Any], ...] = (
    torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.linspace, torch.logspace,
    torch.eye, torch.rand, torch.randn,
    torch.randint, torch.randperm, torch.tensor, torch.as_tensor, torch.tril_indices,
    torch.triu_indices, torch.finfo, torch.iinfo,
    np.array, np.asarray, np.prod, np.sum, np.mean, np.sqrt, np.ceil, np.floor, np.log, np.log2,
    np.round,
)  # fmt: skip


@contextmanager
def called_whole(functions: Collection[Callable[..., Any]]) -> Iterator[None]:
    """Record calls of `functions` with traced values as nodes within this context.

    Each function is replaced in every module that imported it.
    """
    wrapped = [(function.__name__, function, _recorded(function)) for function in functions]
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", None)
            if not isinstance(module, types.ModuleType) or names is None:
                continue
            for name, function, stand_in in wrapped:
                if names.get(name) is function:
                    replaced.append((names, name, function))
                    names[name] = stand_in
            # one look at all types: modules hold 100,000 names, and few are scripted functions
            if torch.jit.ScriptFunction not in map(type, list(names.values())):
                continue
            for name, value in list(names.items()):
                if type(value) is torch.jit.ScriptFunction:
                    replaced.append((names, name, value))
                    names[name] = _recorded(scripted_op(value))
        yield
    finally:
        for names, name, function in replaced:
            names[name] = function


@functools.cache
def scripted_op(function: Any) -> Callable[..., Any]:
    """Return `function`, a torch.jit.ScriptFunction, as the target of an fx node.

    Each call returns the same object.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    run.__name__, run.__qualname__ = function.name, function.qualified_name
    return run


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function, updated=())
    def record(*args: Any, **kwargs: Any) -> Any:
        traced: list[fx.Proxy] = []
        fx.node.map_aggregate(
            (args, kwargs),
            lambda value: traced.append(value) if isinstance(value, fx.Proxy) else None,
        )
        return (
            traced[0].tracer.create_proxy("call_function", function, args, kwargs)
            if traced
            else function(*args, **kwargs)
        )

    return record
