"""Regions: sets of fx nodes with one tensor going in and one coming out; blocks are regions.

Only activations count as going in or out: tensors with the batch in dimension 0 that depend on the
input. Sizes, constants and weights may cross a region's border freely, because lowering moves no
op.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx, nn

from dggraph.compiler.aliasing import find_read
from dggraph.compiler.caches import cache_guards
from dggraph.compiler.contexts import has_gradient
from dggraph.compiler.profiling import TRACED_BATCH, Profile
from dggraph.compiler.tracing import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A single-entry, single-exit part of the backbone's graph."""

    path: str
    """Module path in the backbone."""
    signature: Any
    """Similar regions share it: the module's class, or the classes of a `Sequential`'s children."""
    input: str
    """Name of the fx node outside whose value enters the region."""
    output: str
    """Name of the fx node inside whose value leaves the region."""
    fx_nodes: tuple[str, ...]
    """Names of all fx nodes inside, in execution order."""
    input_shape: tuple[int, ...]
    """Without the batch axis."""
    shape: tuple[int, ...]
    """Output shape without the batch axis."""
    macs: int
    """Multiply-accumulates of one instance."""
    num_mac_ops: int
    """Convolutions, linear layers and matrix products inside."""


class Flow:
    """The activations of a traced backbone, and which op reads which."""

    def __init__(self, trace: Trace, profile: Profile) -> None:
        self.trace = trace
        self.module = trace.module
        self.profile = profile
        self.order = {fx_node: index for index, fx_node in enumerate(trace.graph.nodes)}
        self.by_name = {fx_node.name: fx_node for fx_node in trace.graph.nodes}
        self.activations: set[fx.Node] = set()
        tainted: set[fx.Node] = set()
        for fx_node in trace.graph.nodes:
            if fx_node.op == "placeholder" or (
                fx_node.op != "output" and tainted.intersection(fx_node.all_input_nodes)
            ):
                shape = profile.shapes.get(fx_node.name)
                if shape is not None or fx_node.name in profile.bundles:
                    tainted.add(fx_node)
                if shape is not None and len(shape) >= 1:
                    self.activations.add(fx_node)

    @cached_property
    def read(self) -> set[fx.Node]:
        """The ops on whose values the output, or an effect that remains, may depend."""
        return find_read(self, self.order)

    @cached_property
    def cache_guards(self) -> tuple[fx.Node, ...]:
        """The guards that the lowered graph does without (see `caches`)."""
        return cache_guards(self, self.order)

    def inputs(self, fx_node: fx.Node) -> list[fx.Node]:
        """Return the activations that `fx_node` reads.

        Tuples of tensors count as their sources; sizes do not count.
        """
        found: list[fx.Node] = []
        for source in fx_node.all_input_nodes:
            found += self.inputs(source) if source.name in self.profile.bundles else [source]
        return [source for source in found if source in self.activations]

    def readers(self, fx_node: fx.Node) -> list[fx.Node]:
        """Return the activations, and the output, that are computed directly from `fx_node`.

        Sizes read from it do not count.
        """
        return [
            user
            for user in fx_node.users
            if user.op == "output" or user in self.activations or user.name in self.profile.bundles
        ]

    def shape(self, fx_node: fx.Node) -> tuple[int, ...]:
        """Return the shape of one instance."""
        return self.profile.shapes[fx_node.name][1:]

    def has_batch(self, fx_node: fx.Node) -> bool:
        """Whether a value is features that a gate can weigh.

        They have the batch first, at least one more axis in addition to the channels, and real
        numbers.
        """
        shape = self.profile.shapes[fx_node.name]
        return (
            len(shape) >= 3
            and shape[0] == TRACED_BATCH
            and fx_node.name not in self.profile.unroutable
        )

    def num_mac_ops(self, fx_node: fx.Node) -> int:
        """Return 1 for a convolution or product, or the weight matrices in an opaque module."""
        if not self.profile.macs.get(fx_node.name):
            return 0
        if fx_node.op != "call_module":
            return 1
        module = self.module.get_submodule(str(fx_node.target))
        return max(1, sum(parameter.ndim >= 2 for parameter in module.parameters()))

    def region(self, fx_nodes: Iterable[fx.Node], path: str, signature: Any) -> Region | None:
        """Return the region made of `fx_nodes`, or None if it has more than one entry or exit."""
        members = sorted(fx_nodes, key=self.order.__getitem__)
        inside = set(members)
        active = [fx_node for fx_node in members if fx_node in self.activations]
        entries = {
            source for fx_node in active for source in self.inputs(fx_node) if source not in inside
        }
        exits = {
            fx_node
            for fx_node in active
            if any(reader not in inside for reader in self.readers(fx_node))
        }
        if len(entries) != 1 or len(exits) != 1:
            return None
        (entry,), (exit,) = entries, exits
        # Without gradients no router learns.
        if not self.has_batch(entry) or not self.has_batch(exit) or not has_gradient(exit):
            return None
        return Region(
            path=path,
            signature=signature,
            input=entry.name,
            output=exit.name,
            fx_nodes=tuple(fx_node.name for fx_node in members),
            input_shape=self.shape(entry),
            shape=self.shape(exit),
            macs=sum(self.profile.macs.get(fx_node.name, 0) for fx_node in members),
            num_mac_ops=sum(self.num_mac_ops(fx_node) for fx_node in members),
        )

    def is_glue(self, fx_node: fx.Node, *, weighted: bool) -> bool:
        """Whether an op has no MACs, keeps the shape, and is the only reader of its one input.

        `weighted` also admits norms.
        """
        sources = self.inputs(fx_node)
        if (
            fx_node not in self.activations
            or len(sources) != 1
            or self.profile.macs.get(fx_node.name)
        ):
            return False
        if fx_node.op == "placeholder" or self.shape(sources[0]) != self.shape(fx_node):
            return False
        if fx_node.op == "call_module" and not weighted:
            module = self.module.get_submodule(str(fx_node.target))
            if any(True for _ in module.parameters()):
                return False
        return self.readers(sources[0]) == [fx_node]

    def glue_back(self, fx_node: fx.Node) -> Iterator[fx.Node]:
        """Yield `fx_node`, then the nodes before it while only weightless glue lies between."""
        yield fx_node
        while self.is_glue(fx_node, weighted=False):
            (fx_node,) = self.inputs(fx_node)
            yield fx_node

    def extend(self, region: Region, output: fx.Node) -> Region:
        """Return `region` extended by the glue between its output and `output`."""
        added: list[str] = []
        for fx_node in self.glue_back(output):
            if fx_node.name == region.output:
                break
            added.append(fx_node.name)
        return replace(region, output=output.name, fx_nodes=(*region.fx_nodes, *reversed(added)))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a non-leaf or leaf module, as the trace recorded it."""

    key: str
    path: str
    depth: int
    ancestors: tuple[str, ...]
    """Keys of the calls around it, outermost first."""
    fx_nodes: tuple[fx.Node, ...]


def module_calls(fx_nodes: Collection[fx.Node]) -> dict[str, Call]:
    """Return every module call of the trace by its key, outermost first."""
    members: dict[str, list[fx.Node]] = {}
    facts: dict[str, tuple[str, tuple[str, ...]]] = {}
    for fx_node in fx_nodes:
        stack = fx_node.meta.get("nn_module_stack") or {}
        keys = tuple(stack)
        for depth, key in enumerate(keys):
            members.setdefault(key, []).append(fx_node)
            facts.setdefault(key, (stack[key][0], keys[:depth]))
    calls = [
        Call(key, facts[key][0], len(facts[key][1]), facts[key][1], tuple(found))
        for key, found in members.items()
    ]
    return {call.key: call for call in sorted(calls, key=lambda call: call.depth)}


def module_path(fx_node: fx.Node) -> str:
    """Return the path of the module that `fx_node` calls, or whose forward contains it.

    Outside all modules this is the name of the fx node.
    """
    if fx_node.op == "call_module":
        return str(fx_node.target)
    stack = list((fx_node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack and stack[-1][0] else fx_node.name


def signature(module: nn.Module) -> Any:
    """Return the value that two blocks must share to count as similar."""
    if type(module) is nn.Sequential:
        return (nn.Sequential, tuple(type(child) for child in module.children()))
    return type(module)
