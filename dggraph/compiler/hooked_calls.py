"""What the graph runs around the call of a hooked module, as `nn.Module.__call__` does.

`enter` runs pre-hooks on what goes in, `leave` runs forward hooks on what comes out, and between
them they set up backward hooks. A lifted block hands on F(x) alone, and the skip is edges: its
hooks look at x + F(x) without gradient, and cannot replace it.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import (
    BackwardHook,
)  # not documented, torch 2.10 to 2.15; what nn.Module.__call__ uses

from dggraph.errors import HookError


@dataclass(slots=True)
class HookedCall:
    """One call of a hooked module, between its two ends."""

    module: nn.Module
    args: tuple[Any, ...]
    """What its hooks see."""
    input: Any
    """What goes in."""
    backward: Any
    is_lifted: bool


def enter(module: nn.Module, x: Tensor, is_lifted: bool) -> HookedCall:
    """Run the pre-hooks of `module` on its input, the features (B, ...) that its place in the graph
    gets.

    Raises:
        HookError: a pre-hook gives other than one tensor, or replaces the input of a lifted block.
    """
    args: tuple[Any, ...] = (x.detach() if is_lifted else x,)
    for number, hook in module._forward_pre_hooks.items():
        takes_keywords = number in module._forward_pre_hooks_with_kwargs
        given = hook(module, args, {}) if takes_keywords else hook(module, args)
        if given is None:
            continue
        _refuse_replacing(module, is_lifted, "input")
        args = given[0] if takes_keywords else given if isinstance(given, tuple) else (given,)
        if len(args) != 1 or not isinstance(args[0], Tensor) or (takes_keywords and given[1]):
            raise HookError(
                f"a forward pre-hook of a {type(module).__name__} gives other arguments than one"
                " tensor; in a converted network its modules take the one tensor that their place"
                " in the graph gets."
            )
    full, before = list(module._backward_hooks.values()), list(module._backward_pre_hooks.values())
    backward: Any = BackwardHook(module, full, before) if full or before else None
    if backward is not None:
        args = backward.setup_input_hook(args)
    return HookedCall(module, args, x if is_lifted else args[0], backward, is_lifted)


def entered(call: HookedCall) -> Any:
    """What `enter` lets in."""
    return call.input


def leave(call: HookedCall, y: Any) -> Any:
    """Run the forward hooks of the call on its output; what they give replaces it.

    Raises:
        HookError: one replaces the output of a lifted block.
    """
    module, result = call.module, (call.args[0] + y).detach() if call.is_lifted else y
    for number, hook in module._forward_hooks.items():
        takes_keywords = number in module._forward_hooks_with_kwargs
        given = (
            hook(module, call.args, {}, result)
            if takes_keywords
            else hook(module, call.args, result)
        )
        if given is not None:
            _refuse_replacing(module, call.is_lifted, "output")
            result = given
    if call.is_lifted:
        return y
    return result if call.backward is None else call.backward.setup_output_hook(result)


def _refuse_replacing(module: nn.Module, is_lifted: bool, what: str) -> None:
    if is_lifted:
        raise HookError(
            f"a hook replaces the {what} of a {type(module).__name__} whose residual is lifted: it"
            " hands on F(x) alone, the skip is edges. Let the hook return None, hook a module"
            ' inside it, or convert with residual="keep".'
        )
