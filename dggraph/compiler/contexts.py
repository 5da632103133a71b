"""Restore the contexts that ops were traced in: `no_grad`, `inference_mode` and `autocast`.

Each op enters its own contexts. Lowering may therefore move ops apart, and an error inside an op
leaves nothing switched off.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import fx

CONTEXTS, CALLED = "dg_contexts", "dg_called"
"""Keys of an fx node's `meta`.

`CONTEXTS`: its contexts, outermost first. `CALLED`: path of the module that it calls within them.
"""

Context = tuple[Any, ...]
"""A name and its options.

("no_grad",), ("inference_mode",), or ("autocast", device type, dtype, enabled, cache enabled).
"""


def has_gradient(fx_node: fx.Node) -> bool:
    """Whether an op may have gradients; False if it was traced with gradients off."""
    return not any(
        context[0] in ("no_grad", "inference_mode") for context in fx_node.meta.get(CONTEXTS, ())
    )


def restore_contexts(graph: fx.Graph) -> None:
    """Make every op of `graph` that was traced in contexts run in them again, under its name."""
    for fx_node in list(graph.nodes):
        contexts = fx_node.meta.get(CONTEXTS, ())
        if not contexts:
            continue
        if fx_node.op == "call_function":
            fx_node.target = _within(contexts, fx_node.target)
        elif fx_node.op == "call_method":
            fx_node.op, fx_node.target = "call_function", _within(contexts, _method(fx_node.target))
        else:
            with graph.inserting_before(fx_node):
                module = graph.create_node(
                    "get_attr", fx_node.target, name=f"{fx_node.name}_module"
                )
            fx_node.meta[CALLED] = fx_node.target
            fx_node.op, fx_node.target, fx_node.args = (
                "call_function",
                _within(contexts, _call),
                (module, *fx_node.args),
            )


def called_module(fx_node: fx.Node) -> str | None:
    """Return the path of the module that an op calls, in contexts or not; None if it calls none."""
    called = fx_node.target if fx_node.op == "call_module" else fx_node.meta.get(CALLED)
    return None if called is None else str(called)


def called_modules(fx_nodes: Iterable[fx.Node]) -> Iterator[str]:
    """Yield the paths of the modules that `fx_nodes` call, one for each call."""
    return (path for fx_node in fx_nodes if (path := called_module(fx_node)) is not None)


def _within(contexts: tuple[Context, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    (kind, *options), *others = contexts
    inner = _within(tuple(others), function) if others else function
    around = {"no_grad": _without_gradients, "inference_mode": _in_inference_mode}
    run = _cast(inner, *options) if kind == "autocast" else around[kind](inner)
    names = "_".join(context[0] for context in contexts)
    run.__name__ = f"{getattr(function, '__name__', 'op')}_within_{names}".lstrip("_")
    return run


def _without_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return function(*args, **kwargs)

    return run


def _in_inference_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


def _cast(
    function: Callable[..., Any],
    device_type: str,
    dtype: torch.dtype | None,
    enabled: bool,
    cache_enabled: bool | None,
) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled):
            return function(*args, **kwargs)

    return run


def _method(name: str) -> Callable[..., Any]:
    def method(target: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(target, name)(*args, **kwargs)

    method.__name__ = name
    return method


def _call(module: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)
