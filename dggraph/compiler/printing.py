"""How a lowered graph reads as code: our ops by their own names, `aggregate(...)` where fx would
print `dggraph_ops_aggregation_aggregate(...)`.
"""

from torch.fx.graph import CodeGen

from dggraph.ops.aggregation import adapt, aggregate, concatenate, share, stage_cache
from dggraph.ops.gating import column
from dggraph.ops.guards import hold
from dggraph.ops.liveness import Topology, is_live, open_edges, open_output, settle
from dggraph.system.torch_private import NamingCodeGen

OPS = (
    adapt, aggregate, column, concatenate, hold, is_live, open_edges, open_output, settle, share,
    stage_cache, Topology,
)  # fmt: skip


def short_names() -> CodeGen:
    """What makes a graph print these ops by their own names: `graph.set_codegen(short_names())`."""
    return NamingCodeGen({op.__name__: op for op in OPS})
