"""Lowered graphs without what training needs: one output, no caches, nothing that is not read."""

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx, nn

from dggraph.compiler.lowered import LoweredModule
from dggraph.compiler.naming import shadows_graph_module
from dggraph.compiler.planning import NEEDED, mark_needed
from dggraph.errors import ExportError
from dggraph.exporting.reloading import tracer_of
from dggraph.ops.aggregation import aggregate, share
from dggraph.ops.collecting import collect, weigh

CACHE_OF_WEIGH = 4
"""The place of the cache among the arguments of `weigh`."""


def plain_graph(lowered: LoweredModule) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Return a copy of the lowered graph that only gives the backbone's output.

    Also returns its fx nodes by the names that they, or those they stand in for, have in `lowered`.
    """
    graph = copy.deepcopy(lowered.graph)
    by_name = {fx_node.name: fx_node for fx_node in graph.nodes}
    for name, fx_node in list(by_name.items()):
        if fx_node.target in (share, collect):
            by_name[name] = fx_node.args[0]
            fx_node.replace_all_uses_with(by_name[name])
        elif fx_node.target is aggregate:
            fx_node.args = fx_node.args[:2]
        elif fx_node.target is weigh:
            given = list(fx_node.args)
            given[CACHE_OF_WEIGH] = None
            fx_node.args = tuple(given)
        elif fx_node.op == "output":
            fx_node.args = (fx_node.args[0][0],)
    erase_idle_(graph)
    return graph, by_name


def erase_idle_(graph: fx.Graph) -> None:
    """Remove every op that leads neither to the output nor to an op with an effect. In place."""
    mark_needed(graph)
    for fx_node in reversed(list(graph.nodes)):
        if NEEDED not in fx_node.meta:
            graph.erase_node(fx_node)


def module_of(
    lowered: LoweredModule,
    graph: fx.Graph,
    added: Mapping[str, nn.Module | Tensor] = MappingProxyType({}),
) -> fx.GraphModule:
    """Return a GraphModule of `graph` with those parts of `lowered` and `added` that it reads.

    Raises:
        ExportError: a part has a name that is taken, or the graph writes to the backbone.
    """
    parts: dict[str, Any] = dict(added)
    for fx_node in graph.nodes:
        target = str(fx_node.target)
        if fx_node.op not in ("call_module", "get_attr") or target in parts:
            continue
        owner, _, name = target.rpartition(".")
        if shadows_graph_module(target.partition(".")[0]):
            raise ExportError(
                f"the backbone has a part {target!r}, and {target.partition('.')[0]!r} is a name"
                " that every fx.GraphModule has, so its graph cannot be taken apart. Rename the"
                ' part in the backbone, or export with mode="dense".'
            )
        if target == "dg_self":
            raise ExportError(
                "the backbone's forward keeps a value on the backbone, which has no place in a"
                " graph of its own. Let it return the value, or not keep it in eval mode."
            )
        parts[target] = getattr(lowered.get_submodule(owner) if owner else lowered, name)
    read_again = fx.Graph(tracer_cls=tracer_of(graph))
    read_again.output(read_again.graph_copy(graph, {}))
    module = fx.GraphModule(parts, read_again)
    module.training = lowered.training
    for path, part in module.named_modules():
        _own_as_(part, lowered, path)
    return module


def _own_as_(part: nn.Module, lowered: LoweredModule, path: str) -> None:
    """Put what `part` owns in the backbone's order, and in its state dict what is there. In place.

    A GraphModule owns things in the order of their use.
    """
    try:
        own = lowered.get_submodule(path) if path else lowered
    except AttributeError:  # it was added
        return
    if own is part:
        return
    for kind in ("_modules", "_parameters", "_buffers"):
        mine, order = vars(part)[kind], list(vars(own)[kind])
        first = {name: mine.pop(name) for name in order if name in mine}
        added = dict(mine)
        mine.clear()
        mine.update(first | added)
    kept = own._buffers.keys() - own._non_persistent_buffers_set
    known = {name for name in part._buffers if name in vars(own) or name in own._buffers}
    part._non_persistent_buffers_set |= known - kept
