"""Which ops write into the memory of others: in-place ops, `out=`, views, lasting effects."""

import inspect
import operator
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.nn import functional

from dggraph.compiler.capture import keep


class Traced(Protocol):
    """Ops of a backbone and the module that they belong to.

    A `Flow`, or a part of a lowered graph.
    """

    @property
    def module(self) -> nn.Module:
        """The module that owns the modules that they call."""

    @property
    def by_name(self) -> Mapping[str, fx.Node]:
        """The ops, without those that lowering wrote."""


_IN_PLACE = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.imod, operator.ipow,
    operator.imatmul, operator.iand, operator.ior, operator.ixor, operator.ilshift,
    operator.irshift, operator.setitem,
    operator.delitem,
}  # fmt: skip
_FRESH_MODULES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.BatchNorm3d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_FRESH_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, torch.add,
    torch.mul, torch.matmul, torch.cat,
    torch.conv2d, torch.relu, torch.sigmoid, torch.tanh, functional.softmax, functional.gelu,
    functional.relu, functional.silu,
    functional.hardswish, functional.hardsigmoid, functional.conv1d, functional.conv2d,
    functional.conv3d, functional.linear,
    functional.batch_norm, functional.layer_norm, functional.group_norm, functional.instance_norm,
    functional.rms_norm,
    functional.avg_pool2d, functional.adaptive_avg_pool2d,
}  # fmt: skip


def overwritten(flow: Traced, fx_node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the operands that `fx_node` may overwrite."""
    targets = [fx_node.kwargs.get("out")]
    if _is_in_place(flow, fx_node):
        targets += [*fx_node.args[:1], *(fx_node.kwargs.get(name) for name in ("input", "self"))]
    targets += _written_by_schema(fx_node)
    found: list[fx.Node] = []
    fx.map_arg(targets, found.append)
    return tuple(found)


def writers(flow: Traced, value: fx.Node, apart_from: Collection[str] = ()) -> Iterator[fx.Node]:
    """Yield the ops that write into `value` or into a possible view of it.

    Convolutions, norms and sums return fresh tensors; every other op may return a view. Ops that
    lowering inserted (nodes that the backbone's trace does not have) never work in place. Direct
    readers of `value` that are named in `apart_from` are skipped.
    """
    seen, open_ends = set[fx.Node](), [value]
    while open_ends:
        current = open_ends.pop()
        for user in current.users:
            if (
                user in seen
                or user.op == "output"
                or user.target in ("size", "dim", keep)
                or user.name not in flow.by_name
            ):
                continue
            if current is value and user.name in apart_from:
                continue
            seen.add(user)
            is_writer = current in overwritten(flow, user)
            if is_writer:
                yield user
            module = (
                flow.module.get_submodule(str(user.target)) if user.op == "call_module" else None
            )
            if is_writer or not (
                isinstance(module, _FRESH_MODULES) or user.target in _FRESH_FUNCTIONS
            ):
                open_ends.append(user)
            is_foreign_module = module is not None and any(
                not type(inner).__module__.startswith("torch.nn.") for inner in module.modules()
            )
            if is_foreign_module or (user.op == "call_function" and _is_foreign(user.target)):
                yield user


def is_effect(flow: Traced, fx_node: fx.Node) -> bool:
    """Whether an op must run even if nothing reads its value.

    True for an op that writes into memory, keeps a value on a module, or runs code that cannot be
    inspected.
    """
    if fx_node.target is keep or overwritten(flow, fx_node):
        return True
    return not fx_node.users and (
        fx_node.op == "call_module"
        or (fx_node.op == "call_function" and _is_foreign(fx_node.target))
    )


def outlasts(flow: Traced, fx_node: fx.Node) -> bool:
    """Whether the effect of an op remains after the forward pass.

    True for an op that keeps a value on a module, or writes into a weight or buffer.
    """
    return fx_node.target is keep or any(owner.op == "get_attr" for owner in _owners(flow, fx_node))


def find_read(flow: Traced, fx_nodes: Collection[fx.Node]) -> set[fx.Node]:
    """Return the ops on whose values the output, or an effect that remains, may depend."""
    writers: dict[fx.Node, list[fx.Node]] = {}
    for fx_node in fx_nodes:
        for owner in _owners(flow, fx_node):
            writers.setdefault(owner, []).append(fx_node)
    found = {one for one in fx_nodes if one.op == "output" or outlasts(flow, one)}
    open_ends = list(found)
    while open_ends:
        sources = open_ends.pop().all_input_nodes
        fresh = {*sources, *(one for source in sources for one in writers.get(source, ()))} - found
        found |= fresh
        open_ends += fresh
    return found


def _owners(flow: Traced, fx_node: fx.Node) -> Iterator[fx.Node]:
    """Yield the operands that an op may overwrite, and what these may be views of."""
    for current in overwritten(flow, fx_node):
        yield current
        while (
            current.op in ("call_method", "call_function")
            and current.target not in _FRESH_FUNCTIONS
            and current.all_input_nodes
        ):
            current = current.all_input_nodes[0]
            yield current


def may_overwrite(flow: Traced, value: fx.Node, apart_from: Collection[str] = ()) -> bool:
    """Whether some op may write into `value`; False only where this is proved impossible.

    Modules and functions that torch does not ship may do anything.
    """
    return next(writers(flow, value, apart_from), None) is not None


def _is_foreign(function: Any) -> bool:
    """Whether a function comes from outside Python, torch and torchvision."""
    module = getattr(function, "__module__", None) or ""
    return not isinstance(function, type) and module.partition(".")[0] not in (
        "",
        "torch",
        "_operator",
        "builtins",
        "math",
        "torchvision",
    )


def _written_by_schema(fx_node: fx.Node) -> list[Any]:
    """Return the arguments that the schema of a `torch.library` operator marks as written."""
    operator_ = getattr(
        fx_node.target, "_opoverload", fx_node.target
    )  # torch.library.custom_op gives a CustomOpDef
    schema = getattr(getattr(operator_, "default", operator_), "_schema", None)
    if schema is None:
        return []
    given = (
        dict(zip((argument.name for argument in schema.arguments), fx_node.args, strict=False))
        | fx_node.kwargs
    )
    return [
        given.get(one.name)
        for one in schema.arguments
        if one.alias_info is not None and one.alias_info.is_write
    ]


def _is_in_place(flow: Traced, fx_node: fx.Node) -> bool:
    """Whether an op may overwrite its first operand."""
    if fx_node.op == "call_method":
        return _is_in_place_name(str(fx_node.target))
    if fx_node.op == "call_module":
        module = flow.module.get_submodule(str(fx_node.target))
        return any(getattr(inner, "inplace", False) for inner in module.modules())
    if fx_node.op != "call_function" or not callable(fx_node.target):
        return False
    if fx_node.target in _IN_PLACE or _is_in_place_name(getattr(fx_node.target, "__name__", "")):
        return True
    try:
        bound = inspect.signature(fx_node.target).bind(*fx_node.args, **fx_node.kwargs)
    except (TypeError, ValueError):  # built into torch: these have no `inplace` argument
        return False
    return bool(bound.arguments.get("inplace", False))


def _is_in_place_name(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")
