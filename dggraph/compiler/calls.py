"""Where calls of the backbone's modules stand in the lowered graph.

The graph is flat: it calls `torch.nn`'s modules and none of the blocks and containers around them.
What such a module would take and give still has a place in it. fx nodes know the calls that they
were traced in; of those inside a call, one value comes from outside and one is read outside, or the
call has no place.

1. Tracing marks calls with structured arguments or results. While lowering, `mark_features` notes
   which values are features, `mark_routing` to which containers a stage's routing belongs, and
   `mark_lifted` where a block's residual add was taken out, so that its last value is F(x) alone.
2. `find_sites` then reads the place of every call off the graph, as it stands.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from dggraph.ops.aggregation import adapt, aggregate, concatenate, share

STACK = "nn_module_stack"
"""Where fx nodes keep the calls that they stand in: {key: (module path, class)}, outermost
first.
"""
_FEATURE, _LIFTED, _STRUCTURED = "dg_feature", "dg_lifted", "dg_structured"
_FEATURE_OPS = (share, adapt, aggregate, concatenate)
_SIZE_METHODS = ("size", "dim", "numel", "ndimension")


@dataclass(frozen=True, slots=True)
class Site:
    """One call of one module."""

    path: str
    around: Mapping[str, Any]
    """The calls around it, as fx nodes keep them in `nn_module_stack`."""
    inside: frozenset[fx.Node]
    entries: tuple[fx.Node, ...]
    """Features from outside that are read inside."""
    exits: tuple[fx.Node, ...]
    """Features from inside that are read outside."""
    is_lifted: bool
    """True for a block that hands on F(x) instead of x + F(x)."""
    is_structured: bool
    """True where the backbone's call takes or gives tensors in a list, tuple or mapping."""

    @property
    def has_place(self) -> bool:
        """One feature map goes in and one comes out, bare."""
        return len(self.entries) == len(self.exits) == 1 and not self.is_structured


def mark_structured(graph: fx.Graph, keys: Collection[str]) -> None:
    """Remember that the calls at `keys` take or give tensors in a list, tuple or mapping."""
    for fx_node in graph.nodes:
        found = tuple(key for key in fx_node.meta.get(STACK) or {} if key in keys)
        if found:
            fx_node.meta[_STRUCTURED] = found


def mark_features(fx_nodes: Iterable[fx.Node]) -> None:
    """Remember that these hold features: tensors that depend on the images."""
    for fx_node in fx_nodes:
        fx_node.meta[_FEATURE] = True


def mark_routing(
    own: Iterable[fx.Node], blocks: Sequence[Collection[fx.Node]], path: str, graph: fx.Graph
) -> None:
    """A stage's `own` nodes belong to the calls that hold all of its `blocks`, but to no block;
    `path` is that of the first one.
    """
    stacks = [fx_node.meta.get(STACK) or {} for members in blocks for fx_node in members]
    shared = {
        key: call
        for key, call in (stacks[0] if stacks else {}).items()
        if all(key in stack for stack in stacks)
    }
    if len(blocks) == 1:  # what holds one block may be the block itself, or lie inside it
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
    """`terms`, a first branch and the sums that take in the others, are what is left of the calls
    that gave the residual add `add`.
    """
    for total in terms[1:]:
        total.meta |= {STACK: dict(add.meta.get(STACK) or {}), _FEATURE: True}
    terms[-1].meta[_LIFTED] = tuple(add.meta.get(STACK) or {})


def stand_in(twin: fx.Node, value: fx.Node) -> None:
    """Let `twin`, a new node at the border of a call, be to the calls around it what `value`
    was.
    """
    twin.meta[_FEATURE] = True
    if _LIFTED in value.meta:
        twin.meta[_LIFTED] = value.meta[_LIFTED]


def find_sites(graph: fx.Graph) -> dict[str, Site]:
    """Every call by its key in `nn_module_stack`, inner calls first."""
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
