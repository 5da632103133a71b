"""The ops that run around the call of a hooked module, as in `nn.Module.__call__`.

`enter` runs pre-hooks on the input, `leave` runs forward hooks on the output, and together they set
up backward hooks. A lifted block returns F(x) alone, and its skip is edges: hooks on it see x +
F(x) without gradient, and cannot replace it.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# Not documented, torch 2.10 to 2.15; nn.Module.__call__ uses it.
from torch.utils.hooks import BackwardHook

from dggraph.errors import HookError


@dataclass(slots=True)
class HookedCall:
    """One call of a hooked module, from `enter` to `leave`."""

    module: nn.Module
    args: tuple[Any, ...]
    """The arguments that its hooks see."""
    input: Any
    """The value that the module takes."""
    backward: Any
    is_lifted: bool


def enter(module: nn.Module, x: Tensor, is_lifted: bool) -> HookedCall:
    """Run the pre-hooks of `module` on its input, the features (B, ...) at its place in the graph.

    Raises:
        HookError: a pre-hook returns anything but one tensor, or replaces the input of a lifted
            block.
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
                f"a forward pre-hook of a {type(module).__name__} returns other arguments than one"
                " tensor; in a converted network each module takes one tensor, the value at its"
                " place in the graph. Let the hook return one tensor or None."
            )
    full, before = list(module._backward_hooks.values()), list(module._backward_pre_hooks.values())
    backward: Any = BackwardHook(module, full, before) if full or before else None
    if backward is not None:
        args = backward.setup_input_hook(args)
    return HookedCall(module, args, x if is_lifted else args[0], backward, is_lifted)


def entered(call: HookedCall) -> Any:
    """Return the input of the module, after its pre-hooks."""
    return call.input


def leave(call: HookedCall, y: Any) -> Any:
    """Run the forward hooks of the call on its output; a value that they return replaces it.

    Raises:
        HookError: a hook replaces the output of a lifted block.
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
            f"a hook replaces the {what} of a {type(module).__name__} whose residual is lifted: the"
            " block returns F(x) alone, and its skip is edges. Let the hook return None, hook a"
            ' module inside the block, or convert with residual="keep".'
        )
