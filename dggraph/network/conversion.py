"""`convert`: load, trace, profile, discover, build, wire, lower, check, report."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import networkx as nx
from torch import Tensor, fx, nn

from dggraph.compiler.copying import copy_model, stored_activations
from dggraph.compiler.discovery import Discovery, discover
from dggraph.compiler.fingerprints import fingerprint, qualified_name
from dggraph.compiler.lowered import routing_of
from dggraph.compiler.planning import Aggregation
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow
from dggraph.compiler.static_graph import (
    ResidualChoice,
    build_graph,
    choose_residuals,
    find_adds,
)
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.compiler.tracing import Opaque, trace
from dggraph.errors import NothingToRouteError, WiringError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.wiring import Wiring, is_complete, wire
from dggraph.models.registry import LoadedModel
from dggraph.models.reparameterisation import advice
from dggraph.network.assembly import assemble
from dggraph.network.blueprint import Blueprint
from dggraph.network.conversion_arguments import check_options, read_given
from dggraph.network.network import DynamicNetwork
from dggraph.network.outputs import no_tensors
from dggraph.network.report import note_checks
from dggraph.network.self_checks import check_converted_
from dggraph.network.standin import note_weights_
from dggraph.ops.granularity import Granularity, read_granularity


def convert(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    wiring: "str | Wiring | Iterable[tuple[str, str]] | nx.DiGraph[str]" = "complete",
    residual: ResidualChoice = "auto",
    router: str = "node",
    gate: str | None = None,
    granularity: Granularity | str = "edge",
    aggregation: Aggregation = "sum",
    threshold: float = 0.5,
    init: Literal["preserve", "scratch"] = "preserve",
    stages: Mapping[str, Sequence[str]] | None = None,
    leaves: Collection[type[nn.Module]] = (),
    allow_static: bool = False,
) -> DynamicNetwork:
    """Convert a static backbone into a dynamic graph network with bitwise identical outputs.

    Args:
        model: A backbone, a MODEL name (`resnet50`, `timm:regnety_008`,
            `package.module:function`), or the result of `models.registry.load_model`. It is
            neither changed nor shared.
        example_input: (1 or more, C, H, W); by default 224 pixels (torchvision; 299 for Inception)
            or timm's own input size.
        wiring: A name, a `Wiring`, an edge list of node names, or a networkx graph of them. The
            static edges are always added.
        residual: `keep` leaves `x + F(x)` in the block, `lift` turns the skip into edges, and
            `auto` lifts where that is exact. A stage that cannot be lifted is kept in any case,
            and `net.report` gives the reason.
        router: `node`, `stage`, `content`, the controls `tied` and `constant`, or a registered
            one; options in brackets, such as `node(16, inputs=pool+std)`.
        gate: `anchored`, `shrink`, `scaled`, `softmax`, `sigmoid`, or a registered one. None is
            `anchored`, or `sigmoid` with `init="scratch"`.
        granularity: How many weights an edge has for an image: one (`edge`), one for each group
            of channels (their number, such as 4), or one for each `channel` or position (`pixel`).
            An edge is open if its largest weight is above the threshold. Stages whose edges
            concatenate, or pad channels, keep one weight an edge; `net.report` lists them.
        aggregation: `sum` reads the weighted sum of the sources. `additive` keeps the plain sum of
            open edges, and adds gain * norm(weighted sum of normed sources), with gains from 0. It
            is for lifted residuals; other stages keep `sum`.
        threshold: Edges with weights at or below it are dropped; in [0, 1).
        init: With `preserve` the network starts as the backbone, or an error is raised, whatever
            the router and the gate. `scratch` is for training from random weights.
        stages: Replaces discovery: {stage name: module paths of its blocks, in order}.
        leaves: Module classes to keep as one opaque call.
        allow_static: Return a network without routed blocks instead of raising an error.

    Returns:
        The network, in the mode of `model`.

    Raises:
        InputError: An option or the input is not valid.
        TraceError: The backbone has data-dependent control flow.
        DiscoveryError: `stages` does not describe blocks of the backbone.
        NothingToRouteError: No block has a candidate edge around it.
        WiringError: The wiring names an impossible edge, or channels cannot be split into so many
            groups.
        LoweringError: The self-check found a difference between the lowered network and the
            backbone, or could not prove that there is none.

    Example:
        >>> import dggraph, torch, torchvision
        >>> model = torchvision.models.resnet18().eval()
        >>> net = dggraph.convert(model, torch.zeros(1, 3, 64, 64))
        >>> x = torch.rand(2, 3, 64, 64)
        >>> torch.equal(net(x), model(x))
        True
    """
    if gate is None:
        gate = "sigmoid" if init == "scratch" else "anchored"
    check_options(
        router=router,
        gate=gate,
        residual=residual,
        init=init,
        granularity=granularity,
        aggregation=aggregation,
        threshold=threshold,
        leaves=leaves,
    )
    loaded, given, example = read_given(model, example_input)
    with ordinary_surroundings(example.device):
        backbone = copy_model(given)
        traced = trace(backbone, leaves, example)
        _refuse_no_output(traced.graph, type(given).__name__)
        flow = Flow(traced, profile(traced.module, traced.graph, example))
        found = discover(flow, stages)
        adds = find_adds(flow, found.stages)
        kept_because = choose_residuals(
            found.stages, adds, choice=residual, is_complete=is_complete(wiring)
        )
        static_graph = build_graph(type(given).__name__, found.stages, kept_because)
        graph = wire(static_graph, wiring)
        if not (allow_static or _routes(graph)):
            raise NothingToRouteError(_nothing(graph.name, found, traced.opaque, advice(given)))
        blueprint = Blueprint(
            fingerprint=fingerprint(traced.graph),
            found=found.stages,
            static=found.static,
            kept_because=kept_because,
            router=router,
            gate=gate,
            granularity=read_granularity(granularity),
            aggregation=aggregation,
            leaves=_kept_classes(given, leaves),
            input_shape=tuple(example.shape[1:]),
            dtype=str(example.dtype).removeprefix("torch."),
        )
        net = assemble(flow, adds, graph=graph, blueprint=blueprint, threshold=threshold)
        _refuse_no_effect(net)
        difference = check_converted_(net, backbone, example, init)
        report = note_checks(net.report, net.plan, max_difference=difference)
        net.report = replace(report, detached=stored_activations(given), branches=advice(given))
    if isinstance(loaded, LoadedModel):
        note_source_(net, loaded)
    return _in_mode_of_(net, given)


def note_source_(net: DynamicNetwork, loaded: LoadedModel) -> None:
    """Set MODEL name, preprocessing, class names and origin of the weights of `net`. In place."""
    net.source, net.source_options = loaded.source, loaded.options
    net.preprocess, net.labels = loaded.preprocess, loaded.labels
    note_weights_(net, loaded.weights_origin)
    net.converted = replace(
        net.converted, source=loaded.source, source_options=dict(loaded.options)
    )


def _in_mode_of_(net: DynamicNetwork, model: nn.Module) -> DynamicNetwork:
    """Put every module of `net` into the mode of the same module in `model`. In place."""
    for name, module in model.named_modules():
        twin = net.lowered.get_submodule(name) if name else net.lowered
        twin.training = module.training
    for stage in net.graph.stages:
        routing_of(net.lowered, stage).train(model.training)
    net.training = model.training
    return net


def _refuse_no_output(graph: fx.Graph, name: str) -> None:
    """Raise InputError if nothing that a backbone returns is computed in its forward."""
    if not graph.output_node().all_input_nodes:
        raise no_tensors(name)


def _routes(graph: DynamicGraph) -> bool:
    """Whether some block has a candidate edge around it."""
    return any(len(graph.edges(stage)) > len(graph.nodes(stage)) - 1 for stage in graph.stages)


def _refuse_no_effect(net: DynamicNetwork) -> None:
    """Raise WiringError if no stage can take the granularity or aggregation that was asked for."""
    asked = net.blueprint
    if asked.aggregation != "sum" and all(plan.aggregation == "sum" for plan in net.plan):
        raise WiringError(
            f"aggregation={asked.aggregation!r} needs residuals that are lifted, and no stage of"
            f' {net.graph.name} has them. Use aggregation="sum".'
        )
    if asked.granularity != "edge" and all(plan.granularity == "edge" for plan in net.plan):
        raise WiringError(
            f"granularity={net.blueprint.granularity!r} is not possible in {net.graph.name}: the"
            ' edges of all its stages concatenate, or pad channels. Use granularity="edge".'
        )


def _kept_classes(model: nn.Module, leaves: Collection[type[nn.Module]]) -> tuple[str, ...]:
    """Return the qualified names of the classes in `leaves` that `model` contains."""
    kept = {type(module) for module in model.modules() if isinstance(module, tuple(leaves))}
    return tuple(sorted(qualified_name(one) for one in kept))


def _nothing(name: str, found: Discovery, opaque: Sequence[Opaque], branches: str) -> str:
    """Return the text of the error for a backbone without routed blocks."""
    largest = "; ".join(f"{path}: {reason}" for path, _, reason in found.static[:3])
    untraced = (
        f" Kept as one call, because it cannot be traced: {'; '.join(map(str, opaque[:3]))}."
        if opaque
        else ""
    )
    return (
        f"{name} has no block with a candidate edge around it, so there is nothing to route"
        f" ({largest or 'no convolutions found'}).{untraced}{f' {branches}.' if branches else ''}"
        " Choose another wiring, or in Python name the blocks with `stages={...}` or pass"
        " `allow_static=True`."
    )
