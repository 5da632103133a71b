"""How a lowered graph reads as code: our ops by their own names, `aggregate(...)` where fx would
print `dggraph_ops_aggregation_aggregate(...)`.
"""

from typing import Any

from torch.fx.graph import CodeGen

from dggraph.ops.aggregation import adapt, aggregate, concatenate, share, stage_cache
from dggraph.ops.gating import column
from dggraph.ops.guards import hold
from dggraph.ops.liveness import Topology, is_live, open_edges, open_output, settle

OPS = (
    adapt, aggregate, column, concatenate, hold, is_live, open_edges, open_output, settle, share,
    stage_cache, Topology,
)  # fmt: skip


class ShortNames(CodeGen):
    """Generates the same code as fx. An op whose name one of the backbone's arguments has keeps its
    long one.
    """

    def _gen_python_code(self, nodes: Any, root_module: str, namespace: Any, **options: Any) -> Any:
        # Private, torch 2.10 to 2.15. Where torch calls it otherwise, the code has long names.
        arguments = {fx_node.target for fx_node in nodes if fx_node.op == "placeholder"}
        for op in OPS:
            if op.__name__ not in arguments:
                namespace.create_name(op.__name__, op)
        return super()._gen_python_code(nodes, root_module, namespace, **options)
