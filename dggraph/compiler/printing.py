"""Print a lowered graph as readable code, with ops of dggraph by their short names.

`aggregate(...)` is printed where fx would print `dggraph_ops_aggregation_aggregate(...)`.
"""

from torch.fx.graph import CodeGen

from dggraph.ops.additive import add_normed
from dggraph.ops.aggregation import adapt, aggregate, concatenate, share
from dggraph.ops.collecting import collect, weigh
from dggraph.ops.content_router import content_logits, of_live
from dggraph.ops.gating import column, shrink
from dggraph.ops.granularity import largest, settle_parts, shrink_parts
from dggraph.ops.guards import hold
from dggraph.ops.liveness import (
    Topology,
    is_live,
    live_sources,
    open_edges,
    open_output,
    settle,
)
from dggraph.ops.stage_cache import stage_cache
from dggraph.system.torch_private import NamingCodeGen

OPS = (
    adapt, add_normed, aggregate, collect, column, concatenate, content_logits, hold, is_live,
    largest, live_sources, of_live, open_edges, open_output, settle, settle_parts, share, shrink,
    shrink_parts, stage_cache, Topology, weigh,
)  # fmt: skip


def short_names() -> CodeGen:
    """Return a code generator that prints dggraph's ops by their short names.

    Use it as `graph.set_codegen(short_names())`.
    """
    return NamingCodeGen({op.__name__: op for op in OPS})
