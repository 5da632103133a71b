"""A program with its module calls inlined as bound functions on bound weights.

A call of a module takes about ten Python calls before the first kernel runs. On one small image
that is most of the time. Inlining makes these look-ups once. Each assumption becomes a check of 40
ns: `Inlined.is_valid` reports whether the modules still have the same weights, settings and
methods, and no hooks. Weights may change in place.

Only modules of exactly the classes in `RULES` are inlined. All others stay calls.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from dggraph.compiler.hooks import FORWARD_KINDS, has_hooks
from dggraph.compiler.identities import Identities
from dggraph.compiler.partition import Piece, Program, StageProgram, effects_of, function_of
from dggraph.compiler.planning import uses_batch_statistics
from dggraph.system.torch_private import has_global_hooks

Read = Callable[[str], Any]
"""Takes the name of a parameter, buffer or setting of a module, and returns its value."""
Rule = Callable[[fx.Node, Read], tuple[Callable[..., Any], tuple[Any, ...]] | None]
"""Takes the input of a module call and a reader of the module.

Returns a function and its arguments, or None for a module that returns its input.
"""


_CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")


def _norm(x: fx.Node, read: Read) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    tensors = [read(name) for name in ("running_mean", "running_var", "weight", "bias")]
    return functional.batch_norm, (x, *tensors, False, 0.0, read("eps"))


def _function(function: Callable[..., Any], *names: str) -> Rule:
    return lambda x, read: (function, (x, *map(read, names)))


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: _function(torch.conv1d, *_CONVOLUTION),
    nn.Conv2d: _function(torch.conv2d, *_CONVOLUTION),
    nn.Conv3d: _function(torch.conv3d, *_CONVOLUTION),
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
    nn.Linear: _function(functional.linear, "weight", "bias"),
    nn.ReLU: _function(functional.relu, "inplace"),
    nn.ReLU6: _function(functional.hardtanh, "min_val", "max_val", "inplace"),
    nn.SiLU: _function(functional.silu, "inplace"),
    nn.Hardswish: _function(functional.hardswish, "inplace"),
    nn.Hardsigmoid: _function(functional.hardsigmoid, "inplace"),
    nn.Sigmoid: _function(torch.sigmoid),
    nn.AdaptiveAvgPool2d: _function(functional.adaptive_avg_pool2d, "output_size"),
    nn.Dropout: _function(functional.dropout, "p", "training"),
    nn.Identity: lambda x, read: None,
    StochasticDepth: lambda x, read: None,
}
"""For each exact class, the function that a module of it computes in eval mode."""


METHODS = [
    (cls, name, getattr(cls, name))
    for cls in (nn.Module, *RULES)
    for name in ("forward", "_conv_forward", "__call__")
    if name in vars(cls) or (cls in RULES and name == "forward")
]
"""Class, name and function of each method that `RULES` replace."""
MAX_PATIENCE = 1024
"""Largest number of passes until an `Inliner` inlines again."""


@dataclass(frozen=True, slots=True)
class Inlined:
    """An inlined program and the state that it relies on."""

    program: Program
    same: Identities
    """Parameters, buffers, settings and classes; an attribute set later may hide a method."""
    hooks: tuple[Mapping[int, Any], ...]
    """Hook tables that were empty when inlining."""

    def is_valid(self) -> bool:
        """Whether the modules are as they were when inlining."""
        return self.same.hold() and not any(self.hooks)


def is_patched() -> bool:
    """Whether a class of `RULES` has other methods than torch's, as under some profilers."""
    patched = [getattr(cls, name) is not function for cls, name, function in METHODS]
    return any(patched)


class Inliner:
    """Chooses, for each pass, between a program and its inlined form.

    It inlines at the second pass, and again after modules have changed. Each change doubles the
    number of passes until it inlines again, up to `MAX_PATIENCE`, so swapping weights at every pass
    stays cheap.

    Args:
        source: the program.
        seen: the modules that it was cut for, in the caller's form.
    """

    def __init__(self, source: Program, seen: object = None) -> None:
        self.source, self.seen = source, seen
        self.inlined: Inlined | None = None
        self.patience = self.wait = 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "Inliner":
        return Inliner(self.source)

    def program(self, lowered: nn.Module) -> Program:
        """Return the program to run now.

        It is the source if a norm in it uses statistics of the batch.
        """
        if has_global_hooks() or is_patched():
            return self.source
        inlined = self.inlined  # another thread may drop it
        if inlined is not None and inlined.is_valid():
            return inlined.program
        if inlined is not None:
            self.inlined, self.patience = None, min(2 * self.patience, MAX_PATIENCE)
            self.wait = self.patience
        if self.wait > 0:
            self.wait -= 1
            return self.source
        if uses_batch_statistics(lowered, self.source.norms):
            return self.source
        self.inlined = inlined = inline(self.source, lowered)
        return inlined.program


def inline(program: Program, lowered: nn.Module) -> Inlined:
    """Inline every piece of `program`, whose modules `lowered` owns.

    No batch norm may be in training mode.
    """
    writer = _Writer(lowered)
    steps: list[tuple[Piece | StageProgram, tuple[str, ...]]] = []
    for step, spent in program.steps:
        if isinstance(step, Piece):
            steps.append((writer.inline(step), spent))
        else:
            blocks = tuple(
                block._replace(piece=writer.inline(block.piece)) for block in step.blocks
            )
            effects = effects_of(step.plan, blocks)
            steps.append((replace(step, blocks=blocks, effects=effects), spent))
    for path in program.norms:
        norm = writer.find(path)
        if norm is not None:
            writer.check(vars(norm), "training")
            writer.check(norm._buffers, "running_mean")
    modules = writer.modules.values()
    same = Identities(
        list(writer.checks.values()),
        [(module, type(module)) for module in modules],
        [(vars(module), len(vars(module))) for module in modules],
    )
    return Inlined(replace(program, steps=tuple(steps)), same, writer.hooks)


class _Writer:
    """Rewrites pieces and records the state that they rely on."""

    def __init__(self, lowered: nn.Module) -> None:
        self.lowered = lowered
        self.checks: dict[tuple[int, str], tuple[Mapping[str, Any], str, Any]] = {}
        self.hooks: tuple[Mapping[int, Any], ...] = ()
        self.modules: dict[int, nn.Module] = {}

    def inline(self, piece: Piece) -> Piece:
        """Return `piece` as a function that no longer uses the LoweredModule."""
        graph, bound, twins = fx.Graph(), SimpleNamespace(), dict[fx.Node, Any]()

        def bind(value: Any) -> Any:
            name = f"c{len(vars(bound))}"
            setattr(bound, name, value)
            return graph.get_attr(name)

        for fx_node in piece.graph.nodes:
            args = fx.map_arg(fx_node.args, twins.__getitem__)
            kwargs = fx.map_arg(fx_node.kwargs, twins.__getitem__)
            if fx_node.op == "get_attr":
                *path, name = str(fx_node.target).split(".")
                owner = self.module_at(path)
                twins[fx_node] = (
                    bind(self.value(owner, name))
                    if _is_held(owner, name)
                    else graph.call_function(getattr, (bind(owner), name))  # computed at each read
                )
                continue
            if fx_node.op != "call_module":
                twins[fx_node] = graph.create_node(
                    fx_node.op, fx_node.target, args, kwargs, fx_node.name
                )
                continue
            module = self.module_at(str(fx_node.target).split("."))
            rule = self.rule_for(module) if len(args) == 1 and not kwargs else None
            if rule is None:
                callee = bind(module)
                twins[fx_node] = graph.call_module(str(callee.target), args, kwargs)
                graph.erase_node(callee)
                continue

            def read(name: str, module: nn.Module = module) -> Any:
                value = self.value(module, name)
                return value if _is_literal(value) else bind(value)

            called = rule(args[0], read)
            twins[fx_node] = args[0] if called is None else graph.call_function(*called)
        run = function_of(graph)
        return replace(
            piece,
            run=lambda _lowered, *inputs: run(bound, *inputs),
            keeps_nothing=all(_keeps_nothing(fx_node) for fx_node in graph.nodes),
        )

    def rule_for(self, module: nn.Module) -> Rule | None:
        """Return the rule that inlines `module`, or None if it stays a call."""
        rule = RULES.get(type(module))
        is_padded_by_hand = getattr(module, "padding_mode", "zeros") != "zeros"
        is_batch_norm = rule is _norm and module.running_mean is None
        if rule is None or is_padded_by_hand or is_batch_norm or module.training:
            return None
        if has_hooks(module) or any(hasattr(type(module), name) for name in vars(module)):
            return None  # the latter hides a method
        for name in ("training", "forward", "padding_mode", *FORWARD_KINDS):
            self.check(vars(module), name)
        self.hooks += tuple(vars(module)[kind] for kind in FORWARD_KINDS)
        self.modules[id(module)] = module
        return rule

    def module_at(self, path: Sequence[str]) -> nn.Module:
        """Return the module at `path`, and check from now on that it stays there."""
        module = self.find(path)
        assert module is not None
        return module

    def find(self, path: Sequence[str]) -> nn.Module | None:
        """Return the module at `path`, or None, and check from now on that this stays so."""
        module: nn.Module | None = self.lowered
        for name in path:
            if module is not None:
                self.check(module._modules, name)
                module = module._modules.get(name)
        return module

    def value(self, module: nn.Module, name: str) -> Any:
        """Return the object that `module` has as `name`, and check it from now on."""
        owner = next(owner for owner in _held_by(module) if name in owner)
        self.check(owner, name)
        return owner[name]

    def check(self, owner: Mapping[str, Any], name: str) -> None:
        """Record the object that `owner` has at `name`, or None."""
        self.checks[id(owner), name] = (owner, name, owner.get(name))


def _is_held(module: nn.Module, name: str) -> bool:
    """Whether `module` itself has `name`, which is not a property of its class."""
    return any(name in owner for owner in _held_by(module))


def _held_by(module: nn.Module) -> tuple[Mapping[str, Any], ...]:
    return module._parameters, module._buffers, module._modules, vars(module)


def _is_literal(value: Any) -> bool:
    """Whether generated code can print `value`, which must be immutable."""
    if type(value) is tuple:
        return all(map(_is_literal, value))
    return value is None or type(value) in (bool, int, float, str)


def _keeps_nothing(fx_node: fx.Node) -> bool:
    """Whether `fx_node` certainly keeps no reference to its inputs; the code of a module might."""
    if fx_node.op == "call_function":
        module = getattr(fx_node.target, "__module__", None) or "torch"
        return module.partition(".")[0] in ("torch", "_operator", "math", "builtins")
    return fx_node.op != "call_module"
