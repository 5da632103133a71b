"""Attributes and read-only methods of the backbone, available on the converted network.

A shell is an instance of the backbone's class that owns what the network owns, so its methods see
the current modules of the network. It never runs, since its `forward` is that of the static
backbone. Attribute look-ups are sorted here:

- Plain data is returned, and properties are read.
- A method that needs no argument and whose name says that it only reads (`get_classifier`,
  `no_weight_decay`) is returned.
- A method of every module (`train`, `state_dict`) is returned if the backbone overrides it, see
  `own_version`.
- Every other method would run or rebuild the static backbone. It raises an error that says what to
  do before converting.
"""

import copy
import inspect
import re
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from dggraph.compiler.copying import STATE_HOOKS, rebind_
from dggraph.compiler.identities import is_literal
from dggraph.compiler.lowered import OWNED
from dggraph.errors import BackboneOnlyError, InputError

_LOOKS = re.compile(r"(get|is|has|num)_\w+|group_matcher|no_weight_decay\w*")
_ADVICE = {
    "reset_classifier": (
        "Assign the new last layer here, for example net.fc = nn.Linear(512, 10), or call it before"
        " converting"
    ),
    "set_grad_checkpointing": (
        "Call it before converting: a converted network recomputes what its backbone was set to"
        " recompute"
    ),
    "forward_features": (
        "Build the backbone with num_classes=0 and global_pool='' (timm), or slice it, and convert"
        " that"
    ),
    "forward_head": (
        "Convert the features alone (num_classes=0 and global_pool='' in timm), and call the head"
        " behind them"
    ),
    "forward_intermediates": (
        "Build the backbone with features_only=True (timm), or wrap this call in a module, and"
        " convert that"
    ),
    "get_intermediate_layers": (
        "Build the backbone with features_only=True (timm), or wrap this call in a module, and"
        " convert that"
    ),
    "fuse_model": "Call it before converting, or use dggraph.optimize_for_inference(net)",
    "fuse": "Call it before converting",
    "reparameterize": "Call it before converting",
    "switch_to_deploy": "Call it before converting",
}
_ELSE = "Call it on the backbone before converting; what it changes comes along"


def make_shell(backbone: nn.Module, owner: nn.Module) -> nn.Module:
    """Return a copy of `backbone` without its children, which owns what `owner` owns instead.

    It is an instance of the same class, with the same attributes.
    """
    shell: nn.Module = object.__new__(type(backbone))
    vars(shell).update(vars(backbone))
    vars(shell).update({name: vars(owner)[name] for name in OWNED}, training=owner.training)
    vars(shell).update({name: OrderedDict(vars(backbone)[name]) for name in STATE_HOOKS})
    rebind_(shell, {id(backbone): shell})
    return shell


def copy_shell(shell: nn.Module, owner: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy of `shell` that owns what `owner` owns.

    `memo` already has the copies of its modules.
    """
    twin: nn.Module = object.__new__(type(shell))
    memo[id(shell)] = twin
    others = {name: value for name, value in vars(shell).items() if name not in OWNED}
    vars(twin).update(copy.deepcopy(others, memo))
    vars(twin).update({name: vars(owner)[name] for name in OWNED})
    rebind_(twin, memo)
    return twin


def only_images(shell: nn.Module, images: Any, named: dict[str, Any]) -> Any:
    """Return the images of a call, which may be passed under the backbone's name for them.

    Args:
        shell: The shell of the backbone.
        images: The positional argument, or None.
        named: The keyword arguments.

    Raises:
        InputError: There are no images, or they are passed twice, or an argument is unknown.
        BackboneOnlyError: Another argument is not at its default, which conversion used.
    """
    parameters = inspect.signature(shell.forward).parameters
    first, *_ = parameters
    given, kind = dict(named), type(shell).__name__
    if images is None:
        images = given.pop(first, None)
    for name, value in given.items():
        if name == first:
            raise InputError(f"{kind} takes its images once, by position or as {first!r}.")
        if _is_configured(shell, parameters, name, value):
            continue
        if name not in parameters:
            raise InputError(
                f"{kind} has no argument {name!r}. It takes images: net(x) or net({first}=x)."
            )
        default = parameters[name].default
        is_equal = is_literal(value) and is_literal(default) and value == default
        if value is not default and not is_equal:
            raise BackboneOnlyError(
                f"{name!r} cannot be passed to a converted {kind}: conversion used its default,"
                f" {default!r}. Compute a loss from the network's output. Set"
                " other things in the backbone's configuration, or wrap the backbone in a module"
                f" whose forward passes {name!r}, and convert that."
            )
    if images is None:
        raise InputError(f"{kind} takes images (B, C, H, W): call net(x), or net({first}=x).")
    return images


def _is_configured(
    shell: nn.Module, parameters: Mapping[str, inspect.Parameter], name: str, value: Any
) -> bool:
    """Whether `value` is that of a flag in transformers' configuration, which holds for None."""
    if name in parameters:
        is_open = parameters[name].default is None
    else:
        is_open = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    flags = getattr(shell, "config", None)
    return is_open and isinstance(value, bool) and getattr(flags, name, None) is value


def own_version(shell: nn.Module, name: str) -> Callable[..., Any] | None:
    """Return the backbone's override of a method that every module has, or None.

    An override is defined by its class or set on the instance.
    """
    is_own = name in vars(shell) or getattr(type(shell), name) is not getattr(nn.Module, name)
    return getattr(shell, name) if is_own else None


def hand_tensors_(shell: nn.Module, lowered: nn.Module) -> None:
    """Update the plain tensors that the graph reads to those of `shell`. In place."""
    held = vars(lowered)
    held.update(
        {
            name: value
            for name, value in vars(shell).items()
            if isinstance(value, Tensor) and name in held
        }
    )


def look_up(shell: nn.Module, name: str) -> Any:
    """Return the backbone's attribute `name`.

    Raises:
        AttributeError: There is no such attribute.
        BackboneOnlyError: It is a method that would run or rebuild the static backbone.
    """
    kind = type(shell)
    missing = AttributeError(
        f"a converted {kind.__name__} has no attribute {name!r}, and neither had the backbone."
    )
    if name in OWNED or (name.startswith("__") and name.endswith("__")):
        raise missing
    held = vars(shell)
    if name in held:
        if isinstance(held[name], types.MethodType):
            raise _refusal(kind, name)
        return held[name]
    try:
        found = inspect.getattr_static(kind, name)
    except AttributeError:
        raise missing from None
    if isinstance(found, types.FunctionType) and not _only_looks(found, name):
        raise _refusal(kind, name)
    return getattr(shell, name)


def refuse_baked(shell: nn.Module, name: str, graph: fx.Graph) -> None:
    """Raise if the backbone's forward reads `name` but `graph` does not.

    Tracing wrote the value of such an attribute into the graph as a constant.

    Raises:
        BackboneOnlyError: Names the attribute.
    """
    is_there = any(
        vars(shell)[kind].get(name) is not None for kind in ("_modules", "_parameters", "_buffers")
    )
    if is_there or not has(shell, name) or name not in _read(type(shell)):
        return
    if is_read(graph, name):
        return
    raise BackboneOnlyError(
        f"{name!r} cannot be changed any more: the forward of {type(shell).__name__} reads it, and"
        " conversion made its value a constant of the graph. Set it on the backbone, then convert."
    )


def is_read(graph: fx.Graph, name: str) -> bool:
    """Whether `graph` reads `name`, or something in it, each time it runs."""
    return any(
        fx_node.op in ("call_module", "get_attr") and str(fx_node.target).split(".")[0] == name
        for fx_node in graph.nodes
    )


def has(shell: nn.Module, name: str) -> bool:
    """Whether the backbone has an attribute or a method `name`."""
    return (
        name in vars(shell)
        or any(name in vars(shell)[kind] for kind in OWNED)
        or hasattr(type(shell), name)
    )


def _only_looks(function: types.FunctionType, name: str) -> bool:
    own = list(inspect.signature(function).parameters.values())[1:]
    needs_nothing = all(one.default is not one.empty or "VAR" in one.kind.name for one in own)
    return needs_nothing and _LOOKS.fullmatch(name) is not None


def _refusal(kind: type[nn.Module], name: str) -> BackboneOnlyError:
    return BackboneOnlyError(
        f"{kind.__name__}.{name} works on the static backbone, which a converted network no longer"
        f" is. {_ADVICE.get(name, _ELSE)}."
    )


def _read(kind: type[nn.Module]) -> set[str]:
    """Return every name that the forward of `kind` reads, through methods and properties too."""
    found, waiting = {"forward"}, ["forward"]
    while waiting:
        name = waiting.pop()
        for owner in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            held = vars(owner).get(name)
            for code in _codes(held.fget if isinstance(held, property) else held):
                new = set(code.co_names) - found
                found |= new
                waiting += new
    return found


def _codes(function: Any) -> Iterator[types.CodeType]:
    """Yield the code of `function` and of the functions defined in it."""
    code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    waiting = [code] if code is not None else []
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
