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
    module = fx.GraphModule(parts, graph)
    module.training = lowered.training
    return module
