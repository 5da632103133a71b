"""A program with its module calls inlined as bound functions on bound weights.

A call of a module takes about ten Python calls before the first kernel runs. On one small image
that is most of the time. Inlining makes these look-ups once: it writes a function whose default
arguments are the weights. `Inlined.is_valid` then compares pointers: whether the modules still have
the same weights, settings and methods, and no hooks. Weights may change in place.

Only modules of exactly the classes in `inlining_rules` are inlined. All others stay calls. That
modules stay where they are is checked elsewhere (`network/structure`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dggraph.compiler.hooks import FORWARD_KINDS, HookTable, has_hooks, is_hooked
from dggraph.compiler.identities import Contents, Identities, is_literal
from dggraph.compiler.inlining_rules import RULES, Rule, is_norm, is_patched
from dggraph.compiler.lowered import routing_of
from dggraph.compiler.partition import (
    BlockProgram,
    BoundRouting,
    Piece,
    Program,
    StageProgram,
    effects_of,
    function_of,
)
from dggraph.compiler.planning import uses_batch_statistics
from dggraph.ops.decisions import (
    EXACT,
    PREPARED,
    Decide,
    DecideOne,
    Forms,
    bound_decision,
    called_decision,
)
from dggraph.system.torch_private import activations, has_global_hooks

Run = Callable[..., Any]
"""Takes the LoweredModule, which it does not use, and the inputs of a piece."""
Wrap = Callable[[Run], Run]
CALL = "__call__"
"""The method by which an inlined function calls a module that has no rule."""
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
    unwatched: tuple[Mapping[int, Any], ...]
    """Those among them that do not report a new hook: those of routing, and of later modules."""
    hooked: tuple[Mapping[int, Any], ...]
    """Hook tables of routers and gates that were not empty."""
    contents: Contents
    """Weights of routers and gates whose values are part of the program."""

    def is_valid(self, *, is_hooked: bool) -> bool:
        """Whether the modules are as they were when inlining.

        Args:
            is_hooked: Whether a table that reports new hooks has one.
        """
        hooks = self.hooks if is_hooked else self.unwatched
        return not any(hooks) and all(self.hooked) and self.same.hold() and self.contents.hold()


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
        return type(self)(self.source)

    def program(self, lowered: fx.GraphModule) -> Program:
        """Return the program to run now.

        It is the source if a norm in it uses statistics of the batch.
        """
        if has_global_hooks() or is_patched():
            return self.source
        inlined = self.inlined  # another thread may drop it
        if inlined is not None and inlined.is_valid(is_hooked=is_hooked(lowered)):
            return inlined.program
        if inlined is not None:
            self.inlined, self.patience = None, min(2 * self.patience, MAX_PATIENCE)
            self.wait = self.patience
        if self.wait > 0:
            self.wait -= 1
            return self.source
        if uses_batch_statistics(lowered, self.source.norms):
            return self.source
        self.inlined = inlined = self._inline(lowered)
        return inlined.program

    def _inline(self, lowered: fx.GraphModule) -> Inlined:
        return inline(self.source, lowered)


class PreparedInliner(Inliner):
    """Inlines a network that is prepared for inference, from the first pass on.

    Routers and gates take faster forms, which also rely on the values of weights.

    Args:
        source: the program.
        seen: as for `Inliner`.
        wrap: as for `inline`, for example `compiled`.
    """

    def __init__(self, source: Program, seen: object = None, wrap: Wrap | None = None) -> None:
        super().__init__(source, seen)
        self.wait, self.wrap = 0, wrap

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreparedInliner":
        return PreparedInliner(self.source, wrap=self.wrap)

    def program(self, lowered: fx.GraphModule) -> Program:
        """Return the program to run now."""
        if is_hooked(lowered):
            return self.source
        inlined = self.inlined
        if inlined is not None and not all(inlined.hooked):
            self.inlined, self.wait = None, 0  # hooks on routers and gates have gone
        return super().program(lowered)

    def _inline(self, lowered: fx.GraphModule) -> Inlined:
        return inline(self.source, lowered, PREPARED, self.wrap)


def compiled(run: Run) -> Run:
    """Return `run`, an inlined function, compiled by Inductor at its first call."""
    fast = torch.compile(run)
    return lambda _lowered, *inputs: fast(None, *inputs)


def inline(
    program: Program, lowered: nn.Module, forms: Forms = EXACT, wrap: Wrap | None = None
) -> Inlined:
    """Inline every piece of `program`, whose modules `lowered` owns.

    No batch norm may be in training mode. Routers and gates take one of the `forms`. `wrap` takes
    each inlined function and returns the one to run.
    """
    writer = _Writer(lowered, forms, wrap)
    steps: list[tuple[Piece | StageProgram, tuple[str, ...]]] = []
    for step, spent in program.steps:
        if isinstance(step, Piece):
            steps.append((writer.inline(step), spent))
        else:
            blocks = tuple(
                block._replace(piece=writer.inline(block.piece)) for block in step.blocks
            )
            effects, routing = effects_of(step.plan, blocks), writer.bind_routing(step.plan.name)
            bound = replace(
                step,
                blocks=blocks,
                effects=effects,
                routing=routing,
                run_block=_block_runner(blocks),
            )
            steps.append((bound, spent))
    for path in program.norms:
        norm = writer.find(path)
        if norm is not None and id(norm) not in writer.modules:
            writer.check(vars(norm), "training")
            writer.check(norm._buffers, "running_mean")
    modules = list(writer.modules.values())
    same = Identities(writer.checks.values(), modules, map(vars, modules))
    hooks = tuple(vars(module)[kind] for module in modules for kind in FORWARD_KINDS)
    unwatched = tuple(table for table in hooks if type(table) is not HookTable)
    hooked = tuple(writer.hooked)
    contents = Contents(writer.read)
    return Inlined(replace(program, steps=tuple(steps)), same, hooks, unwatched, hooked, contents)


def _block_runner(blocks: Sequence[BlockProgram]) -> Callable[[int, Tensor], Tensor] | None:
    """Return a function of vertex and input, or None if a block reads other values too."""
    if any(block.reads for block in blocks):
        return None
    runs = [block.piece.run for block in blocks]

    def run_block(vertex: int, x: Tensor) -> Tensor:
        output: Tensor = runs[vertex - 1](None, x)[0]
        return output

    return run_block


class _Writer:
    """Rewrites pieces and records the state that they rely on."""

    def __init__(self, lowered: nn.Module, forms: Forms, wrap: Wrap | None) -> None:
        self.lowered, self.forms, self.wrap = lowered, forms, wrap
        self.hooked: list[Mapping[int, Any]] = []
        self.checks: dict[tuple[int, str], tuple[Mapping[str, Any], str, Any]] = {}
        self.modules: dict[int, nn.Module] = {}
        self.read: list[Tensor] = []

    def inline(self, piece: Piece) -> Piece:
        """Return `piece` as a function that no longer uses the LoweredModule."""
        graph, twins, bound = fx.Graph(), dict[fx.Node, Any](), dict[int, tuple[Any, fx.Node]]()

        def bind(value: Any) -> fx.Node:
            """Return the argument whose default is `value`."""
            if id(value) not in bound:
                first = next((one for one in graph.nodes if one.op != "placeholder"), None)
                with nullcontext() if first is None else graph.inserting_before(first):
                    argument = graph.placeholder(f"c{len(bound)}", default_value=None)
                bound[id(value)] = value, argument
            return bound[id(value)][1]

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
                twins[fx_node] = graph.call_method(CALL, (bind(module), *args), kwargs)
                continue

            def read(name: str, module: nn.Module = module) -> Any:
                value = self.value(module, name)
                return value if is_literal(value) else bind(value)

            called = rule(args[0], read)
            twins[fx_node] = args[0] if called is None else graph.call_function(*called)
        run = function_of(graph)
        run.__defaults__ = tuple(value for value, _ in bound.values())
        return replace(
            piece,
            run=run if self.wrap is None else self.wrap(run),
            keeps_nothing=all(map(_keeps_nothing, graph.nodes)),
            is_fresh=_is_fresh(graph),
        )

    def bind_routing(self, stage: str) -> BoundRouting:
        """Return the routing of `stage` as functions, and check from now on that it stays so."""
        routing = routing_of(self.lowered, stage)
        decide, decide_one = dict[int, Decide](), dict[int, DecideOne]()
        constant = dict[int, list[float]]()
        for name in routing._modules:
            self.check(routing._modules, name)
        for vertex, router, gate in routing.deciders():
            modules = [router, *gate.modules()]
            is_known = all(map(self.is_untouched, modules))
            weights = [*_tensors_of(router), *_tensors_of(gate)]
            is_counted = not any(weight.is_inference() for weight in weights)
            forms = self.forms if is_counted else EXACT
            bound = bound_decision(router, gate) if is_known else None
            one = forms.for_one(router, gate) if is_known else None
            row = forms.constant(router, gate) if is_known else None
            if one is not None or row is not None:
                self.read += weights
            decide[vertex] = bound or called_decision(router, gate)
            if one is not None:
                decide_one[vertex] = one
            if row is not None:
                constant[vertex] = row
            if is_known:
                for module in modules:
                    self.check_settings(module)
                    for name in module._modules if module is not router else ():
                        self.check(module._modules, name)
            tables = [vars(module)[kind] for module in modules for kind in FORWARD_KINDS]
            self.hooked += filter(None, tables)
        return BoundRouting(decide, decide_one, constant, self.value(routing, "threshold"))

    def rule_for(self, module: nn.Module) -> Rule | None:
        """Return the rule that inlines `module`, or None if it stays a call."""
        rule = RULES.get(type(module))
        is_padded_by_hand = getattr(module, "padding_mode", "zeros") != "zeros"
        is_batch_norm = is_norm(rule) and module.running_mean is None
        if rule is None or is_padded_by_hand or is_batch_norm or module.training:
            return None
        if not self.is_untouched(module):
            return None
        for name in ("training", "padding_mode"):
            self.check(vars(module), name)
        return rule

    def is_untouched(self, module: nn.Module) -> bool:
        """Whether `module` computes what its class does.

        If so, check from now on that it has the same weights, no hooks and no methods of its own.
        """
        if has_hooks(module) or any(hasattr(type(module), name) for name in vars(module)):
            return False  # the latter hides a method
        for kind in FORWARD_KINDS:
            self.check(vars(module), kind)
        for table in (module._parameters, module._buffers):
            for name in table:
                self.check(table, name)
        self.modules[id(module)] = module
        return True

    def check_settings(self, module: nn.Module) -> None:
        """Check from now on that `module` has the same settings, such as its axis."""
        for name, value in vars(module).items():
            if is_literal(value):
                self.check(vars(module), name)

    def module_at(self, path: Sequence[str]) -> nn.Module:
        """Return the module at `path`, which is known to stay there."""
        return self.lowered.get_submodule(".".join(path))

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


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _is_held(module: nn.Module, name: str) -> bool:
    """Whether `module` itself has `name`, which is not a property of its class."""
    return any(name in owner for owner in _held_by(module))


def _held_by(module: nn.Module) -> tuple[Mapping[str, Any], ...]:
    return module._parameters, module._buffers, module._modules, vars(module)


def _keeps_nothing(fx_node: fx.Node) -> bool:
    """Whether `fx_node` certainly keeps no reference to its inputs; the code of a module might."""
    if fx_node.op == "call_function":
        module = getattr(fx_node.target, "__module__", None) or "torch"
        return module.partition(".")[0] in ("torch", "_operator", "math", "builtins")
    return fx_node.target != CALL


_FRESH = (torch.conv1d, torch.conv2d, torch.conv3d, torch.batch_norm, functional.linear)
"""Functions that return a tensor of their own."""
_IN_PLACE = tuple(activations(name)[1] for name in ("relu", "hardtanh", "silu", "hardswish"))
"""Functions that return the input that they write into."""


def _is_fresh(graph: fx.Graph) -> bool:
    """Whether the only output of `graph` is certainly no view of an input."""
    (output_node,) = graph.find_nodes(op="output")
    last = output_node.args[0]
    last = last[0] if isinstance(last, tuple) and len(last) == 1 else None
    while isinstance(last, fx.Node) and last.target in _IN_PLACE:
        last = last.args[0]
    return isinstance(last, fx.Node) and last.target in _FRESH
