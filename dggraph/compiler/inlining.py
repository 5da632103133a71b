"""A program with its module calls inlined: bound functions on bound weights.

A call of a module takes about ten Python calls before the first kernel runs. On one small image
that is most of the time. Inlining makes these look-ups once. Whatever it relied on becomes a check,
at 40 ns each: `Inlined.is_valid` says whether the modules still have those weights and settings,
and no hooks. Weights may change in place.

Modules of exactly the classes in `RULES` are inlined. All others stay calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from dggraph.compiler.hooks import KINDS, has_hooks
from dggraph.compiler.partition import Piece, Program, StageProgram, effects_of, function_of
from dggraph.system.torch_private import has_global_hooks

Read = Callable[[str], Any]
"""Takes the name of a parameter, buffer or setting of a module."""
Rule = Callable[[fx.Node, Read], tuple[Callable[..., Any], tuple[Any, ...]] | None]
"""Takes a call's input and what reads its module; returns a function and its arguments, or None
for a module that returns its input.
"""


def _convolution(function: Callable[..., Any]) -> Rule:
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    return lambda x, read: (function, (x, *map(read, names)))


def _norm(x: fx.Node, read: Read) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    tensors = [read(name) for name in ("weight", "bias", "running_mean", "running_var")]
    is_cudnn_used = torch.backends.cudnn.enabled
    return torch.batch_norm, (x, *tensors, False, 0.0, read("eps"), is_cudnn_used)


def _function(function: Callable[..., Any], *names: str) -> Rule:
    return lambda x, read: (function, (x, *map(read, names)))


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: _convolution(torch.conv1d),
    nn.Conv2d: _convolution(torch.conv2d),
    nn.Conv3d: _convolution(torch.conv3d),
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.BatchNorm3d: _norm,
    nn.Linear: _function(functional.linear, "weight", "bias"),
    nn.ReLU: _function(functional.relu, "inplace"),
    nn.ReLU6: _function(functional.relu6, "inplace"),
    nn.SiLU: _function(functional.silu, "inplace"),
    nn.Hardswish: _function(functional.hardswish, "inplace"),
    nn.Hardsigmoid: _function(functional.hardsigmoid, "inplace"),
    nn.Sigmoid: _function(torch.sigmoid),
    nn.AdaptiveAvgPool2d: _function(functional.adaptive_avg_pool2d, "output_size"),
    nn.Dropout: lambda x, read: None,
    nn.Identity: lambda x, read: None,
    StochasticDepth: lambda x, read: None,
}
"""Exact class, in eval mode, to what it does there."""


@dataclass(frozen=True, slots=True)
class Inlined:
    """An inlined program and what it relies on."""

    program: Program
    checks: tuple[tuple[Mapping[str, Any], str, Any], ...]
    """A dictionary of a module, a key in it, and the object it held."""
    hooks: tuple[Mapping[int, Any], ...]
    """Tables that were empty."""

    def is_valid(self) -> bool:
        """Whether everything is as it was."""
        # A list: a generator would take twice the time.
        same = [owner.get(key) is value for owner, key, value in self.checks]
        return all(same) and not any(self.hooks)


class Inliner:
    """Chooses, for each pass, between a program and its inlined form.

    It inlines at the second pass, and again after modules have changed. Each change doubles the
    number of passes that it waits, so that a caller who swaps weights at every pass does not pay
    for it.
    """

    def __init__(self, source: Program) -> None:
        self.source = source
        self.inlined: Inlined | None = None
        self.patience = self.wait = 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "Inliner":
        return Inliner(self.source)

    def program(self, lowered: nn.Module) -> Program:
        """The program to run now."""
        if has_global_hooks():
            return self.source
        if self.inlined is not None and not self.inlined.is_valid():
            self.inlined, self.patience = None, 2 * self.patience
            self.wait = self.patience
        if self.inlined is None:
            if self.wait > 0:
                self.wait -= 1
                return self.source
            self.inlined = inline(self.source, lowered)
        return self.inlined.program


def inline(program: Program, lowered: nn.Module) -> Inlined:
    """Inline every piece of `program`; `lowered` owns its modules. No norm is in training mode."""
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
        norm = writer.module_at(path)
        writer.check(vars(norm), "training")
        writer.check(norm._buffers, "running_mean")
    return Inlined(
        replace(program, steps=tuple(steps)), tuple(writer.checks.values()), writer.hooks
    )


class _Writer:
    """Writes pieces anew and notes what they rely on."""

    def __init__(self, lowered: nn.Module) -> None:
        self.lowered = lowered
        self.checks: dict[tuple[int, str], tuple[Mapping[str, Any], str, Any]] = {}
        self.hooks: tuple[Mapping[int, Any], ...] = ()

    def inline(self, piece: Piece) -> Piece:
        """`piece` as a function that no longer looks at the LoweredModule."""
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
                twins[fx_node] = bind(self.value(self.module_at(path), name))
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
                return bind(value) if isinstance(value, Tensor) else value

            called = rule(args[0], read)
            twins[fx_node] = args[0] if called is None else graph.call_function(*called)
        run = function_of(graph)
        return replace(
            piece,
            run=lambda _lowered, *inputs: run(bound, *inputs),
            keeps_nothing=all(_keeps_nothing(fx_node) for fx_node in graph.nodes),
        )

    def rule_for(self, module: nn.Module) -> Rule | None:
        """How to inline `module`; None where it stays a call."""
        rule = RULES.get(type(module))
        is_padded_by_hand = getattr(module, "padding_mode", "zeros") != "zeros"
        is_batch_norm = rule is _norm and module.running_mean is None
        if rule is None or is_padded_by_hand or is_batch_norm or module.training:
            return None
        if has_hooks(module) or "forward" in vars(module):
            return None
        for name in ("training", "forward", "padding_mode"):
            self.check(vars(module), name)
        self.hooks += tuple(vars(module)[kind] for kind in KINDS)
        return rule

    def module_at(self, path: "list[str] | tuple[str, ...]") -> nn.Module:
        """The module at `path`, which is to stay there."""
        module = self.lowered
        for name in path:
            self.check(module._modules, name)
            found = module._modules[name]
            assert found is not None
            module = found
        return module

    def value(self, module: nn.Module, name: str) -> Any:
        """A parameter, buffer, child or attribute of `module`."""
        for owner in (module._parameters, module._buffers, module._modules, vars(module)):
            if name in owner:
                self.check(owner, name)
                return owner[name]
        return getattr(module, name)

    def check(self, owner: Mapping[str, Any], name: str) -> None:
        """Note what `owner` holds as `name`, None for nothing."""
        self.checks[id(owner), name] = (owner, name, owner.get(name))


def _keeps_nothing(fx_node: fx.Node) -> bool:
    """Whether `fx_node` is sure to hold on to none of its inputs: a module's own code might."""
    if fx_node.op == "call_function":
        module = getattr(fx_node.target, "__module__", None) or "torch"
        return module.partition(".")[0] in ("torch", "_operator", "math", "builtins")
    return fx_node.op != "call_module"
