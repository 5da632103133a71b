"""Find the places of the backbone's module calls in the lowered graph.

The graph is flat: it calls `torch.nn`'s modules, but none of the blocks and containers around them.
The input and output of a block or container still have a place in the graph. Each fx node records
the calls that it was traced in. A call has a place if exactly one value enters it and exactly one
of its values is read outside.

1. Tracing marks calls with structured arguments or results. During lowering, `mark_features` marks
   the values that are features, `mark_routing` the containers that a stage's routing belongs to,
   and `mark_lifted` the blocks whose residual add was taken out, so their last value is F(x) alone.
2. `find_sites` then reads the place of every call from the graph in its current state.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from dggraph.ops.additive import add_normed
from dggraph.ops.aggregation import adapt, aggregate, concatenate, share

STACK = "nn_module_stack"
"""Key of an fx node's `meta`: the calls around it, {key: (module path, class)}, outermost first."""
_FEATURE, _LIFTED, _STRUCTURED = "dg_feature", "dg_lifted", "dg_structured"
_FEATURE_OPS = (share, adapt, aggregate, add_normed, concatenate)
_SIZE_METHODS = ("size", "dim", "numel", "ndimension")


@dataclass(frozen=True, slots=True)
class Site:
    """One call of one module."""

    path: str
    around: Mapping[str, Any]
    """The calls around it, as fx nodes store them in `nn_module_stack`."""
    inside: frozenset[fx.Node]
    entries: tuple[fx.Node, ...]
    """Features from outside that are read inside."""
    exits: tuple[fx.Node, ...]
    """Features from inside that are read outside."""
    is_lifted: bool
    """Whether the block returns F(x) instead of x + F(x)."""
    is_structured: bool
    """Whether the backbone's call takes or returns tensors in a list, tuple or mapping."""

    @property
    def has_place(self) -> bool:
        """Whether one bare feature map goes in and one comes out."""
        return len(self.entries) == len(self.exits) == 1 and not self.is_structured


def mark_structured(graph: fx.Graph, keys: Collection[str]) -> None:
    """Mark the calls at `keys`: they take or return tensors in a list, tuple or mapping."""
    for fx_node in graph.nodes:
        found = tuple(key for key in fx_node.meta.get(STACK) or {} if key in keys)
        if found:
            fx_node.meta[_STRUCTURED] = found


def mark_features(fx_nodes: Iterable[fx.Node]) -> None:
    """Mark fx nodes as features: tensors that depend on the images."""
    for fx_node in fx_nodes:
        fx_node.meta[_FEATURE] = True


def mark_routing(
    own: Iterable[fx.Node], blocks: Sequence[Collection[fx.Node]], path: str, graph: fx.Graph
) -> None:
    """Assign the routing nodes of a stage to the calls around all of its blocks.

    Args:
        own: the routing nodes of the stage.
        blocks: the fx nodes of each block; the routing belongs to none of them.
        path: module path of the first block.
        graph: the graph of all these nodes.
    """
    stacks = [fx_node.meta.get(STACK) or {} for members in blocks for fx_node in members]
    shared = {
        key: call
        for key, call in (stacks[0] if stacks else {}).items()
        if all(key in stack for stack in stacks)
    }
    if len(blocks) == 1:  # a call around one block may be the block itself, or lie inside it
        wider = {
            key
            for fx_node in graph.nodes
            if fx_node not in blocks[0]
            for key in fx_node.meta.get(STACK) or {}
        }
        shared = {
            key: call
            for key, call in shared.items()
            if key in wider or path.startswith(f"{call[0]}.")
        }
    for fx_node in own:
        fx_node.meta[STACK] = shared


def mark_lifted(terms: Sequence[fx.Node], add: fx.Node) -> None:
    """Mark what remains of the calls that returned the residual add `add`.

    `terms` are the first branch and the sums that add the others to it.
    """
    for total in terms[1:]:
        total.meta |= {STACK: dict(add.meta.get(STACK) or {}), _FEATURE: True}
    terms[-1].meta[_LIFTED] = tuple(add.meta.get(STACK) or {})


def stand_in(twin: fx.Node, value: fx.Node) -> None:
    """Let `twin`, a new node at the border of a call, take the marks of `value`."""
    twin.meta[_FEATURE] = True
    if _LIFTED in value.meta:
        twin.meta[_LIFTED] = value.meta[_LIFTED]


def find_sites(graph: fx.Graph) -> dict[str, Site]:
    """Return every call by its key in `nn_module_stack`, inner calls first."""
    members: dict[str, list[fx.Node]] = {}
    around: dict[str, tuple[str, dict[str, Any]]] = {}
    for fx_node in graph.nodes:
        outer: dict[str, Any] = {}
        for key, call in (fx_node.meta.get(STACK) or {}).items():
            members.setdefault(key, []).append(fx_node)
            around.setdefault(key, (call[0], dict(outer)))
            outer[key] = call
    sites: dict[str, Site] = {}
    for key in sorted(members, key=lambda key: -len(around[key][1])):
        inside = frozenset(members[key])
        entries = [
            read
            for fx_node in members[key]
            for read in fx_node.all_input_nodes
            if read not in inside and _is_feature(read)
        ]
        exits = [
            fx_node
            for fx_node in members[key]
            if _is_feature(fx_node)
            and any(user not in inside and not _asks_for_a_size(user) for user in fx_node.users)
        ]
        is_lifted = len(exits) == 1 and key in exits[0].meta.get(_LIFTED, ())
        is_structured = any(key in fx_node.meta.get(_STRUCTURED, ()) for fx_node in inside)
        sites[key] = Site(
            *around[key],
            inside,
            tuple(dict.fromkeys(entries)),
            tuple(exits),
            is_lifted,
            is_structured,
        )
    return sites


def _is_feature(fx_node: fx.Node) -> bool:
    return (
        fx_node.op == "placeholder"
        or bool(fx_node.meta.get(_FEATURE))
        or fx_node.target in _FEATURE_OPS
    )


def _asks_for_a_size(fx_node: fx.Node) -> bool:
    is_attribute = fx_node.op == "call_function" and fx_node.target is getattr
    return is_attribute or (fx_node.op == "call_method" and fx_node.target in _SIZE_METHODS)
