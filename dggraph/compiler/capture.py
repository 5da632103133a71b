"""Record what plain fx tracing loses while a backbone is traced.

1. A custom `autograd.Function` becomes one op, so its own backward is kept.
2. Ops record the contexts that they ran in (`no_grad`, `inference_mode`, `autocast`); `contexts`
   restores them around each op.
3. Each value that forward keeps on a module (`self.aux = y`, `self.maps.append(y)`) becomes an op
   that keeps it there; each number that forward counts is noted.
4. Gradient checkpointing is traced through and noted: it only saves memory, and the caller is
   warned.
"""

import sys
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import fx, nn
from torch.amp.autocast_mode import autocast
from torch.utils import checkpoint

from dggraph.compiler.contexts import CONTEXTS, Context
from dggraph.compiler.frames import asking_place

_METHODS = {types.BuiltinMethodType, types.MethodType}
_OWNED = ("_modules", "_parameters", "_buffers")
_COUNTED = (bool, int, float, str)
CHECKPOINT_FLAGS = (
    "grad_checkpointing",
    "gradient_checkpointing",
    "use_checkpoint",
    "with_cp",
    "memory_efficient",
)


class Capture:
    """What one trace records in addition to its graph."""

    def __init__(self) -> None:
        self.autocasts: list[Context] = []
        self.checkpointed: list[str] = []
        """Paths of the modules whose forward asks for gradient checkpointing."""
        self.changed: dict[str, str] = {}
        """Numbers that forward counts on its modules, which no op of the graph does.

        Maps each place (file, line, source) to the name and the value.
        """
        self.returned: Any = None
        """What the backbone's forward returned, in its own types, with proxies for values."""

    def note_contexts(self, fx_node: fx.Node) -> None:
        """Record on a new op the contexts that it runs in."""
        found: list[Context] = [("inference_mode",)] if torch.is_inference_mode_enabled() else []
        if not found and not torch.is_grad_enabled():
            found.append(("no_grad",))
        found += self.autocasts
        if found and fx_node.op.startswith("call_"):
            fx_node.meta[CONTEXTS] = tuple(found)


@contextmanager
def capturing(capture: Capture, tracer: fx.Tracer, root: nn.Module) -> Iterator[None]:
    """Record in `capture` what `tracer` traces of `root`.

    Gradients are on within this context, whatever the caller set. What other threads do meanwhile
    is not recorded.
    """
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        # Read from `vars`, which returns a static method itself and not its function.
        ordinary = vars(owner).get(name)
        replaced.append((owner, name, ordinary))
        setattr(owner, name, value if name == "apply" else _in_this_thread(value, ordinary))

    apply = _apply(capture, tracer)
    replace(torch.autograd.Function, "apply", classmethod(apply))
    replace(nn.Module, "__setattr__", _setattr(capture, tracer, nn.Module.__setattr__))
    replace(autocast, "__init__", _autocast_init(autocast.__init__))
    replace(autocast, "__enter__", _autocast_enter(capture, autocast.__enter__))
    replace(autocast, "__exit__", _autocast_exit(capture, autocast.__exit__))
    replace(
        checkpoint,
        "_checkpoint_without_reentrant_generator_impl",
        _noted_checkpoint(capture, tracer),
    )
    try:
        with _aliases(root, apply), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for owner, name, value in reversed(replaced):
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _in_this_thread(special: Callable[..., Any], ordinary: Any) -> Callable[..., Any]:
    """Return a function that is `special` in this thread and `ordinary` in all others."""
    tracing = threading.get_ident()

    def run(*args: Any, **kwargs: Any) -> Any:
        is_here = threading.get_ident() == tracing
        return special(*args, **kwargs) if is_here else ordinary(*args, **kwargs)

    return run


def keep(value: Any, path: str, name: str) -> None:
    """Stand in a trace for `module.name = value`, where `module` is at `path`.

    `lower` writes the op that does it.
    """


def keep_contents(tracer: fx.Tracer, root: nn.Module) -> None:
    """Record the values that forward put into lists and dicts on its modules.

    `self.maps.append(y)` is recorded as if forward had set the attribute.
    """
    for path, module in root.named_modules():
        for name, value in list(vars(module).items()):
            if type(value) in (list, dict, OrderedDict) and name not in _OWNED:
                keys = value if isinstance(value, dict) else ()
                if all(type(key) in _COUNTED for key in keys) and any(
                    depends_on_input(proxy.node) for proxy in _proxies(value)
                ):
                    tracer.create_proxy(
                        "call_function", keep, (dict(value) if keys else value, path, name), {}
                    )


def depends_on_input(
    fx_node: fx.Node,
    read: Callable[[fx.Node], Iterable[fx.Node]] = lambda current: current.all_input_nodes,
) -> bool:
    """Whether a value depends on the images; False for weights, constants and their results.

    `read` returns the operands of an op that count.
    """
    seen, open_ends = {fx_node}, [fx_node]
    while open_ends:
        current = open_ends.pop()
        if current.op == "placeholder":
            return True
        fresh = [source for source in read(current) if source not in seen]
        seen.update(fresh)
        open_ends += fresh
    return False


@cache
def function_op(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return `function.apply` as the target of an fx node, the same object on each call."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        return function.apply(*args, **kwargs)

    apply.__name__, apply.__qualname__ = (
        function.__name__,
        f"{function.__module__}.{function.__qualname__}.apply",
    )
    return apply


def _apply(capture: Capture, tracer: fx.Tracer) -> Callable[..., Any]:
    original = torch.autograd.Function.__dict__["apply"]

    def apply(function: Any, *args: Any, **kwargs: Any) -> Any:
        if not _proxies((args, kwargs)):
            return original.__get__(None, function)(*args, **kwargs)
        if function is checkpoint.CheckpointFunction:
            _note_checkpoint(capture, tracer)
            return args[0](*args[2:])
        return tracer.create_proxy("call_function", function_op(function), args, kwargs)

    return apply


@contextmanager
def _aliases(root: nn.Module, apply: Callable[..., Any]) -> Iterator[None]:
    """Replace other names of a function's `apply` (`round_ = Round.apply`) within this context.

    torch's own `apply` would take a proxy for a tensor. The names are searched in modules, in the
    classes of `root`'s layers and on the layers themselves.
    """
    replaced: list[tuple[Any, str, Any]] = []
    modules = [
        module for name, module in list(sys.modules.items()) if not name.startswith("torch.")
    ]
    owners = [
        *modules,
        *{base for inner in root.modules() for base in type(inner).__mro__},
        *root.modules(),
    ]
    for owner in owners:
        names = getattr(owner, "__dict__", {})
        if _METHODS.isdisjoint(map(type, list(names.values()))):
            continue  # as most modules are, which hold 100,000 names
        for name, value in list(names.items()):
            if (
                type(value) in _METHODS
                and value.__name__ == "apply"
                and isinstance(value.__self__, type)
            ):
                if issubclass(value.__self__, torch.autograd.Function):
                    replaced.append((owner, name, value))
    try:
        for owner, name, value in replaced:
            setattr(
                owner,
                name,
                staticmethod(partial(apply, value.__self__))
                if isinstance(owner, type)
                else partial(apply, value.__self__),
            )
        yield
    finally:
        for owner, name, value in replaced:
            setattr(owner, name, value)


def _setattr(
    capture: Capture, tracer: fx.Tracer, original: Callable[..., None]
) -> Callable[..., None]:
    def __setattr__(module: nn.Module, name: str, value: Any) -> None:
        # Counters and averages: with a traced value they change from pass to pass.
        is_buffer = bool(_proxies(value)) and name in module._buffers
        if not is_buffer and not any(depends_on_input(proxy.node) for proxy in _proxies(value)):
            before = vars(module).get(name)
            if (
                type(value) in _COUNTED
                and type(before) in _COUNTED
                and before != value
                and name != "training"
            ):
                capture.changed[f"{asking_place()}"] = f"{name} = {before!r}"
            original(module, name, value)
            return
        try:
            path = tracer.path_of_module(module)
        except NameError:  # made in forward
            original(module, name, value)
            return
        tracer.create_proxy("call_function", keep, (value, path, name), {})
        for held in (module._parameters, module._buffers, module._modules):
            held.pop(name, None)
        vars(module)[name] = value

    return __setattr__


def _autocast_init(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(
        self: Any,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        original(self, device_type, dtype, enabled, cache_enabled)
        # torch changes `enabled` where a device is missing.
        self.requested = ("autocast", device_type, dtype, enabled, cache_enabled)

    return __init__


def _autocast_enter(capture: Capture, original: Callable[..., Any]) -> Callable[..., Any]:
    def __enter__(self: Any) -> Any:
        capture.autocasts.append(
            getattr(
                self, "requested", ("autocast", self.device, self.fast_dtype, self._enabled, None)
            )
        )
        return original(self)

    return __enter__


def _autocast_exit(capture: Capture, original: Callable[..., Any]) -> Callable[..., Any]:
    def __exit__(self: Any, *args: Any) -> Any:
        capture.autocasts.pop()
        return original(self, *args)

    return __exit__


def _noted_checkpoint(capture: Capture, tracer: fx.Tracer) -> Callable[..., Iterator[None]]:
    def generate(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        _note_checkpoint(capture, tracer)
        yield

    return generate


def _note_checkpoint(capture: Capture, tracer: fx.Tracer) -> None:
    capture.checkpointed.append(tracer.scope.module_path)


def _proxies(value: Any) -> list[fx.Proxy]:
    """Return the traced values in `value`, which may be nested."""
    if isinstance(value, fx.Proxy):
        return [value]
    if isinstance(value, dict):
        return [proxy for part in value.values() for proxy in _proxies(part)]
    if isinstance(value, list | tuple | set):
        return [proxy for part in value for proxy in _proxies(part)]
    return []
