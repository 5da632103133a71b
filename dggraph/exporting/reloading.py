"""How pickles of static networks are read again: torch traces the code that they hold.

A plain trace would follow functions instead of calling them, fix what depends on train or eval
mode, and write into no tensor (https://github.com/pytorch/pytorch/issues/198077).
"""

import operator
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import fx

_IN_PLACE = (
    *("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"),
    *("iand", "ior", "ixor", "ilshift", "irshift", "setitem"),
)
_FOLLOWED_RIGHTLY = ("torch", "torch.nn.functional", "torch.functional", "_operator", "builtins")
"""Modules whose functions record themselves in a plain trace."""


class _Recorded(fx.Proxy):
    """A proxy that records writes into it, too."""


def _record(name: str) -> Callable[..., Any]:
    target = getattr(operator, name)

    def write(self: _Recorded, *given: Any) -> Any:
        return self.tracer.create_proxy("call_function", target, (self, *given), {})

    return write


for _name in _IN_PLACE:
    setattr(_Recorded, f"__{_name}__", _record(_name))


class _Flag:
    """Stands for `training` of the module at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path


class ReloadingTracer(fx.Tracer):
    """Records the code of a GraphModule op by op."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return what stands for the result of `node`."""
        return _Recorded(node, self)

    def create_arg(self, a: Any) -> Any:
        """Return `a` as an argument of an fx node; a flag is read where the network runs."""
        return (
            self.create_node("get_attr", a.path, (), {})
            if isinstance(a, _Flag)
            else super().create_arg(a)
        )

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of `root`, of a class that torch makes for this trace alone."""
        forward = type(root).forward
        known = {
            name: self._recording(value) if _is_opaque(value) else value
            for name, value in forward.__globals__.items()
        }
        code = FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__)
        type(root).forward = code
        modes = {name: module.training for name, module in root.named_modules()}
        for name in modes:
            module = root.get_submodule(name)
            vars(module)["training"] = _Flag(f"{name}.training".lstrip("."))
        try:
            return super().trace(root, concrete_args)
        finally:
            for name, mode in modes.items():
                vars(root.get_submodule(name))["training"] = mode

    def _recording(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> fx.Proxy:
            return self.create_proxy("call_function", function, args, kwargs)

        return record


def tracer_of(graph: fx.Graph) -> type[fx.Tracer] | None:
    """Return what must read `graph` again, or None where torch's own tracer does.

    Pickles of the others need no dggraph.
    """
    for fx_node in graph.nodes:
        target = fx_node.target
        if fx_node.op == "get_attr" and str(target).rpartition(".")[2] == "training":
            return ReloadingTracer
        if fx_node.op == "call_function" and (
            _is_opaque(target) or getattr(target, "__name__", "") in _IN_PLACE
        ):
            return ReloadingTracer
    return None


def _is_opaque(value: Any) -> bool:
    """Whether a plain trace would run `value`, which the graph calls, on proxies."""
    return (
        isinstance(value, FunctionType | BuiltinFunctionType)
        and value.__module__ not in _FOLLOWED_RIGHTLY
        and not (value.__module__ or "torch").startswith("torch._C")
    )
