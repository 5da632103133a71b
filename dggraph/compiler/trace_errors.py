"""Errors for backbones that cannot be traced."""

import inspect
import re
import traceback

import torch
from torch import fx, nn

from dggraph.compiler.frames import is_library_code, is_module_code
from dggraph.errors import InputError, TraceError


def refuse_untraceable(module: nn.Module) -> None:
    """Raise an error for a model that can never be traced.

    Raises:
        TraceError: a module is scripted, or forward needs more than a batch of images.
        InputError: the model is the module of an exported program.
    """
    for path, inner in module.named_modules():
        if isinstance(inner, torch.jit.ScriptModule):
            where, name = (
                repr(path) if path else "the backbone",
                getattr(inner, "original_name", "ScriptModule"),
            )
            raise TraceError(
                f"{where} is a scripted module ({name}), which has no Python code to trace. Convert"
                " the module that it was scripted from."
            )
    if isinstance(module, fx.GraphModule):
        if any(
            getattr(fx_node.target, "namespace", "") == "aten" for fx_node in module.graph.nodes
        ):
            raise InputError(
                "this is the module of an exported program, which has no module calls in which to"
                " find blocks. Convert the module that it was exported from."
            )
        return
    parameters = list(inspect.signature(module.forward).parameters.values())
    if not parameters:
        raise TraceError(
            f"{type(module).__name__}.forward takes no input; a backbone takes a batch of images as"
            " its first argument."
        )
    required = [p.name for p in parameters[1:] if p.default is p.empty and "VAR" not in p.kind.name]
    if required or parameters[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        extra = ", ".join(repr(name) for name in required) or "keyword arguments only"
        raise TraceError(
            f"{type(module).__name__}.forward needs {extra} in addition to the images; a backbone"
            " is called with one batch of images. Give these arguments defaults, or wrap the model"
            " in a module whose forward fills them in."
        )


def explain(
    module: nn.Module, culprit: tuple[str, type[nn.Module]] | None, error: BaseException
) -> TraceError:
    """Return the error for a failed trace: the module, the place, the reason and how to fix it."""
    path, leaf = culprit if culprit is not None else ("", type(module))
    name = f"{path!r} ({leaf.__name__})" if path else f"the backbone itself ({leaf.__name__})"
    why = (
        " Its control flow depends on the input." if isinstance(error, fx.proxy.TraceError) else ""
    )
    way_out = (
        f"Pass `leaves=({leaf.__name__},)` to keep that module as one opaque block"
        if path
        else (
            "Move the part that cannot be traced into a separate module and pass its class in"
            " `leaves=`"
        )
    )
    return TraceError(f"cannot trace {name} at {where(error)}: {reason_of(error)}.{why} {way_out}.")


def where(error: BaseException) -> str:
    """Return the file and line of the backbone's code that failed.

    This is code of the innermost module, not of a library that it calls.
    """
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not is_library_code(frame)
    ]
    own = [(frame, line) for frame, line in frames if is_module_code(frame)] or frames
    return f"{own[-1][0].f_code.co_filename}:{own[-1][1]}" if own else "unknown line"


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, in terms of traced values."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
    if reason.startswith("argument of type"):
        reason = (
            f"{reason}: forward returns or passes on a value that is not a tensor, number, string,"
            " list, tuple, dict, named tuple or dataclass"
        )
    if isinstance(error, KeyError):
        reason = f"there is no {reason}; values that a hook puts there are not traced"
    if "INTERNAL ASSERT FAILED" in reason or "__torch_dispatch__" in reason:
        reason = (
            "it calls a function transform (torch.vmap, torch.cond), which torch.fx cannot trace"
        )
    return re.sub(
        r"<class '[\w.]*(Proxy|Attribute)'>|'?\b(Asked)?(Proxy|Attribute)\b'?( object)?",
        "a traced value",
        reason,
    )
