"""Hooks that the caller put on a backbone. They never see a traced value; the trace names those it
had to drop.
"""

import copy
from typing import Any

from torch import fx, nn

from dggraph.compiler.copying import rebind_

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def copy_to_trace(module: nn.Module) -> nn.Module:
    """A copy whose hooks of the caller's are gone: none of them sees a proxy. Parameters, which
    nothing writes to, are shared.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    attempt = copy.deepcopy(module, memo)
    for inner in attempt.modules():
        rebind_(inner, memo)
        _clear_foreign_hooks(inner)
    return attempt


def drop_hooks(module: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    """Clear the hooks of every module that the graph does not call as a whole: they would never
    run. Those of its own were traced.
    """
    called = {str(fx_node.target) for fx_node in graph.nodes if fx_node.op == "call_module"}
    inside = tuple(f"{path}." for path in called)
    dropped = {
        path: inner
        for path, inner in module.named_modules()
        if path not in called and not path.startswith(inside)
    }
    reported = tuple(path for path, inner in dropped.items() if _clear_foreign_hooks(inner))
    for inner in dropped.values():
        for name in _HOOKS:
            getattr(inner, name, {}).clear()
    return reported


def _clear_foreign_hooks(module: nn.Module) -> bool:
    """Remove the hooks around `module`'s forward and backward that its own package did not put
    there; True where there were any.
    """
    hooks = [held for name, held in vars(module).items() if name in _HOOKS]
    foreign = {
        key
        for held in hooks
        for key, hook in held.items()
        if callable(hook) and not _is_own(hook, module)
    }
    for held in hooks:
        for key in foreign.intersection(held):
            del held[key]
    return bool(foreign)


def _is_own(hook: Any, module: nn.Module) -> bool:
    """True for a hook that belongs to the forward, as where transformers gathers hidden states with
    some: from the class's own package.
    """
    package, dot, _ = (getattr(hook, "__module__", None) or "").partition(".")
    return bool(dot) and package == type(module).__module__.partition(".")[0]
