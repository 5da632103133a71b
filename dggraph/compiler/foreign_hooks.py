"""Hooks that the caller put on a backbone.

These hooks never see a traced value. The trace reports the hooks that it had to drop.
"""

import copy
from typing import Any

from torch import fx, nn

from dggraph.compiler.copying import rebind_

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
"""Tables of `nn.Module` for hooks around forward and backward; private, torch 2.10 to 2.15."""


def copy_to_trace(module: nn.Module) -> nn.Module:
    """Return a copy without the caller's hooks, so that none of them sees a proxy.

    The copy shares its parameters with `module`; nothing writes to them.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    attempt = copy.deepcopy(module, memo)
    for inner in attempt.modules():
        rebind_(inner, memo)
        _clear_foreign_hooks(inner)
    return attempt


def drop_hooks(module: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    """Clear the hooks of every module that the graph does not call as a whole.

    These hooks would never run. Hooks from a module's own package were traced.

    Returns:
        Paths of the modules that had hooks of the caller.
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
        for name in HOOKS:
            getattr(inner, name, {}).clear()
    return reported


def _clear_foreign_hooks(module: nn.Module) -> bool:
    """Remove the hooks around forward and backward that come from another package.

    Returns:
        Whether there were any.
    """
    hooks = [held for name, held in vars(module).items() if name in HOOKS]
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
    """Whether a hook comes from the package of the module's class and so belongs to its forward.

    transformers gathers hidden states with such hooks.
    """
    package, dot, _ = (getattr(hook, "__module__", None) or "").partition(".")
    return bool(dot) and package == type(module).__module__.partition(".")[0]
