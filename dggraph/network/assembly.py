"""The last pass of `convert` and `load`: lower a wired graph and wrap the result in a network."""

from collections.abc import Sequence

from torch import nn

from dggraph.compiler.edge_writer import Deciders
from dggraph.compiler.lowered import LoweredModule, routing_of
from dggraph.compiler.lowering import lower
from dggraph.compiler.regions import Flow
from dggraph.compiler.residuals import StageAdds
from dggraph.graph.ir import DynamicGraph
from dggraph.network.blueprint import Blueprint
from dggraph.network.cost import tabulate_macs
from dggraph.network.indexing import IndexedNetwork, is_indexed
from dggraph.network.network import DynamicNetwork
from dggraph.network.report import report_conversion
from dggraph.network.snapshot import Snapshot, count_outputs, outline_of
from dggraph.ops.gating import find_gate
from dggraph.ops.routing import find_router
from dggraph.system.devices import first_weight
from dggraph.system.specs import read_spec


def assemble(
    flow: Flow,
    adds: Sequence[StageAdds],
    *,
    graph: DynamicGraph,
    blueprint: Blueprint,
    threshold: float,
) -> DynamicNetwork:
    """Build a network in eval mode, with untrained routers, that shares its modules with `flow`.

    Args:
        flow: The traced and profiled backbone.
        adds: The identity adds of each stage.
        graph: The wired graph.
        blueprint: The stages, routers and gates.
        threshold: The threshold of every stage.

    Raises:
        LoweringError: The backbone has a name that the routers of a stage need.
    """
    scope, make_router = find_router(blueprint.router)
    deciders = Deciders(
        scope=scope,
        router=make_router,
        is_tied=read_spec(blueprint.router).name == "tied",
        gate=find_gate(blueprint.gate),
        threshold=threshold,
        granularity=blueprint.granularity,
        aggregation=blueprint.aggregation,
    )
    lowered = lower(flow, blueprint.found, adds, graph=graph, deciders=deciders)
    _follow_backbone_(lowered.module, graph, flow.module)
    frozen = freeze_unused_(lowered.module)
    kind = IndexedNetwork if is_indexed(flow.module) else DynamicNetwork
    net = kind(
        lowered.module,
        backbone=flow.module,
        graph=graph,
        plan=lowered.plan,
        report=report_conversion(flow, graph, blueprint, frozen),
        macs_table=tabulate_macs(graph, lowered.module, scope, sum(flow.profile.macs.values())),
        blueprint=blueprint,
        converted=Snapshot(outline=outline_of(lowered.module), num_outputs=count_outputs(flow)),
    )
    return net.eval()


def _follow_backbone_(lowered: LoweredModule, graph: DynamicGraph, backbone: nn.Module) -> None:
    """Move routers and gates to the device and dtype of the backbone's weights.

    Thresholds stay float32, because bfloat16 would round 0.999 to 1.
    """
    weight = first_weight(backbone)
    for stage in graph.stages:
        for decider in routing_of(lowered, stage).to(device=weight.device).children():
            decider.to(dtype=weight.dtype)


def freeze_unused_(lowered: LoweredModule) -> tuple[str, ...]:
    """Freeze the parameters that the graph does not read, and return their names.

    Plain DDP fails on parameters that never get a gradient.
    """
    used: set[int] = set()
    for fx_node in lowered.graph.nodes:
        if fx_node.op == "call_module":
            used.update(
                id(parameter)
                for parameter in lowered.get_submodule(str(fx_node.target)).parameters()
            )
        elif fx_node.op == "get_attr":
            path, _, name = str(fx_node.target).rpartition(".")
            owner = lowered.get_submodule(path)
            read = owner._parameters.get(name, getattr(owner, name))
            used.update(map(id, read.parameters() if isinstance(read, nn.Module) else [read]))
    unused = {
        name: parameter
        for name, parameter in lowered.named_parameters()
        if id(parameter) not in used
    }
    for parameter in unused.values():
        parameter.requires_grad_(False)
    return tuple(unused)
