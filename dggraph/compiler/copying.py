"""Copy a backbone, because conversion never works on the caller's model.

torch refuses to copy tensors that are computed from others. If a forward left such a tensor on its
module, for example an activation kept for inspection, the copy gets its values without their
history. If a weight is computed (the old `weight_norm`, `prune`), copying is refused.
"""

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook  # private, as STATE_HOOKS
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dggraph.errors import InputError
from dggraph.system.torch_private import tree_leaves

STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Tables of `nn.Module` for hooks on state dicts; private, torch 2.10 to 2.15."""
_OWNED = ("_modules", "_parameters", "_buffers")


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy, in which `stored_activations` lose their history.

    Raises:
        InputError: a hook computes a weight from others, or some part of the model cannot be
            copied; the message names it.
    """
    _refuse_computed_weights(model)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for _, tensor in _stored(model)}
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(_why_not(model, error)) from error
    for module in twin.modules():
        rebind_(module, memo)
    return twin


def rebind_(module: nn.Module, memo: dict[int, Any]) -> None:
    """Let functions on `module` and its state-dict hooks use the copies of their objects.

    The functions are attributes of the module (`forward`, `train`, a lambda). `deepcopy` does not
    copy functions: through bound objects, closures, defaults and globals they would still run the
    caller's modules.

    Args:
        module: a copy.
        memo: the copies by the id of their originals, as `deepcopy` fills it.
    """
    for name, value in vars(module).items():
        if name not in _OWNED:
            vars(module)[name] = _rebound(value, memo)
    for table in STATE_HOOKS:
        hooks = vars(module)[table]
        for number, hook in hooks.items():
            hooks[number] = _rebound(hook, memo)


def stored_activations(model: nn.Module) -> tuple[str, ...]:
    """Return the names of attributes that hold tensors computed from others.

    A forward leaves them on its module, alone or in lists, tuples and dicts.
    """
    return tuple(dict.fromkeys(name for name, _ in _stored(model)))


def computed_weights(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield each weight that a hook computes from other tensors before each call.

    Yields:
        The name of the weight, the class of the hook, and what to do about it.
    """
    for path, inner in model.named_modules():
        for hook in inner._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                name, way_out = (
                    hook._tensor_name,
                    "make it permanent, the zeros stay: torch.nn.utils.prune.remove(module,"
                    f" {hook._tensor_name!r})",
                )
            elif isinstance(hook, WeightNorm | SpectralNorm):
                name, way_out = (
                    hook.name,
                    "use torch.nn.utils.parametrizations (weight_norm, spectral_norm) instead of"
                    " the old functions, or make it permanent: remove_weight_norm,"
                    " remove_spectral_norm",
                )
            else:
                continue
            yield f"{path}.{name}", type(hook).__name__, way_out


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """Return `value` with the objects it refers to replaced by their copies in `memo`.

    It refers to bound objects, closures, defaults and globals.
    """
    if id(value) in memo:
        return memo[id(value)]
    if type(value) in (list, tuple, dict):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        changed = {key: new for key, part in parts if (new := _rebound(part, memo)) is not part}
        if not changed:
            return value
        if isinstance(value, dict):
            return value | changed
        return type(value)(changed.get(index, part) for index, part in enumerate(value))
    if isinstance(value, types.MethodType):
        return types.MethodType(_rebound(value.__func__, memo), _rebound(value.__self__, memo))
    if isinstance(value, functools.partial):
        arguments = {name: _rebound(argument, memo) for name, argument in value.keywords.items()}
        return functools.partial(
            _rebound(value.func, memo),
            *(_rebound(argument, memo) for argument in value.args),
            **arguments,
        )
    if isinstance(value, _WrappedHook):
        module = value.module() if value.with_module else None
        return _WrappedHook(_rebound(value.hook, memo), memo.get(id(module), module))
    if not isinstance(value, types.FunctionType):
        return value
    used = {
        name: value.__globals__[name]
        for name in value.__code__.co_names
        if id(value.__globals__.get(name)) in memo
    }
    defaults, named = _rebound(value.__defaults__, memo), _rebound(value.__kwdefaults__, memo)
    if (
        not used
        and not value.__closure__
        and defaults is value.__defaults__
        and named is value.__kwdefaults__
    ):
        return value
    scope = (
        value.__globals__ | {name: memo[id(found)] for name, found in used.items()}
        if used
        else value.__globals__
    )
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    twin = types.FunctionType(value.__code__, scope, value.__name__, defaults, cells or None)
    twin.__kwdefaults__ = named
    memo[id(value)] = twin  # a function may be in its own closure
    for cell, held in zip(cells, value.__closure__ or (), strict=True):
        with suppress(ValueError):  # not filled yet
            cell.cell_contents = _rebound(held.cell_contents, memo)
    return functools.update_wrapper(twin, value)


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, inner in model.named_modules():
        attributes = {name: value for name, value in vars(inner).items() if name not in _OWNED}
        for name, value in [*attributes.items(), *inner._buffers.items()]:
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor) and not leaf.is_leaf:
                    yield f"{path}.{name}" if path else name, leaf


def _refuse_computed_weights(model: nn.Module) -> None:
    for name, hook, way_out in computed_weights(model):
        raise InputError(
            f"{name} is computed from other tensors before each call ({hook}), so"
            f" {type(model).__name__} cannot be copied, and convert never works on the original."
            f" Before converting, {way_out}."
        )


def _why_not(model: nn.Module, error: Exception) -> str:
    """Return a message that names what cannot be copied.

    This is a tensor by its layout, or else the smallest module that fails.
    """
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if tensor.layout is not torch.strided and not _is_copyable(tensor):
            return (
                f"{name} is stored as {tensor.layout}, which torch cannot copy in a module, and"
                " convert never works on the original. Store it as a dense tensor, and make it"
                " sparse in the forward."
            )
    culprits = [path for path, inner in model.named_modules() if path and not _is_copyable(inner)]
    where = f" The cause lies in {culprits[-1]!r}." if culprits else ""
    return (
        f"{type(model).__name__} cannot be copied, and convert never works on the original:"
        f" {reason}.{where} If a forward leaves tensors in its own objects, run it within"
        " torch.no_grad() or clear them before converting; keep locks, files and generators"
        " outside the model."
    )


def _is_copyable(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:
        return False
    return True
