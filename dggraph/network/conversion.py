"""`convert`: load, trace, profile, discover, build, wire, lower, check, report."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import networkx as nx
from torch import Tensor, nn

from dggraph.compiler.copying import copy_model, stored_activations
from dggraph.compiler.discovery import Discovery, discover
from dggraph.compiler.fingerprints import fingerprint, qualified_name
from dggraph.compiler.lowered import routing_of
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
from dggraph.errors import NothingToRouteError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.wiring import Wiring, is_complete, wire
from dggraph.models.registry import LoadedModel, load_model
from dggraph.models.reparameterisation import advice
from dggraph.network.assembly import assemble
from dggraph.network.blueprint import Blueprint
from dggraph.network.conversion_arguments import check_options, example_of, plain_backbone
from dggraph.network.network import DynamicNetwork, note_weights_
from dggraph.network.report import note_checks
from dggraph.network.self_checks import check_converted_


def convert(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    wiring: "str | Wiring | Iterable[tuple[str, str]] | nx.DiGraph[str]" = "complete",
    residual: ResidualChoice = "auto",
    router: str = "node",
    gate: str | None = None,
    threshold: float = 0.5,
    init: Literal["preserve", "scratch"] = "preserve",
    stages: Mapping[str, Sequence[str]] | None = None,
    leaves: Collection[type[nn.Module]] = (),
    allow_static: bool = False,
) -> DynamicNetwork:
    """Turn a static backbone into a dynamic graph network that starts as the backbone, to the bit.

    Args:
        model: a backbone, or a MODEL name (`resnet50`, `timm:regnety_008`,
            `package.module:function`), or what `models.registry.load_model` made of a name. Never
            changed or shared.
        example_input: (1 or more, C, H, W); by default 224 pixels (torchvision; 299 for Inception)
            or timm's own input size.
        wiring: a name, a `Wiring`, an edge list of node names, or a networkx graph of them; united
            with the static edges.
        residual: `keep` leaves `x + F(x)` in the block, `lift` turns the skip into edges, `auto`
            lifts where that is exact. A stage that cannot be lifted is kept either way, and
            `net.report` says why.
        router: `node`, `stage`, with a hidden layer `node(16)`, or a registered one.
        gate: `anchored`, `sigmoid`, or a registered one; None is `anchored`, with `init="scratch"`
            `sigmoid`.
        threshold: weights at or below it are dropped; from 0 up to, but not, 1.
        init: `preserve` starts as the backbone, whatever router and gate, or raises; `scratch` is
            for training from nothing.
        stages: overrides discovery: per stage name, the module paths of its blocks in order.
        leaves: module classes to keep as one opaque call.
        allow_static: return a network without routed blocks instead of raising.

    Raises:
        InputError: an option or the input does not fit.
        TraceError: the backbone has data-dependent control flow.
        DiscoveryError: `stages` does not describe blocks of the backbone.
        NothingToRouteError: no block has a candidate edge around it.
        WiringError: the wiring names an impossible edge.
        LoweringError: the self-check found that the lowered network differs from the backbone, or
            could prove nothing.

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
        router=router, gate=gate, residual=residual, init=init, threshold=threshold, leaves=leaves
    )
    loaded = load_model(model) if isinstance(model, str) else model
    given = plain_backbone(loaded.model if isinstance(loaded, LoadedModel) else loaded)
    preprocess = loaded.preprocess if isinstance(loaded, LoadedModel) else None
    example = example_of(given, example_input, preprocess)
    with ordinary_surroundings(example.device):
        backbone = copy_model(given)
        traced = trace(backbone, leaves, example)
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
            leaves=_kept_classes(given, leaves),
            input_shape=tuple(example.shape[1:]),
            dtype=str(example.dtype).removeprefix("torch."),
        )
        net = assemble(flow, adds, graph=graph, blueprint=blueprint, threshold=threshold)
        difference = check_converted_(net, backbone, example, init)
        report = note_checks(net.report, net.plan, max_difference=difference)
        net.report = replace(report, detached=stored_activations(given), branches=advice(given))
    if isinstance(loaded, LoadedModel):
        note_source_(net, loaded)
    return _in_mode_of_(net, given)


def note_source_(net: DynamicNetwork, loaded: LoadedModel) -> None:
    """Let `net` know the name it was built from, and what is known of its images, classes and
    weights.
    """
    net.source, net.source_options = loaded.source, loaded.options
    net.preprocess, net.labels = loaded.preprocess, loaded.labels
    note_weights_(net, loaded.weights_origin)
    net.converted = replace(
        net.converted, source=loaded.source, source_options=dict(loaded.options)
    )


def _in_mode_of_(net: DynamicNetwork, model: nn.Module) -> DynamicNetwork:
    """Put every module of `net` into the mode its twin in `model` has."""
    for name, module in model.named_modules():
        twin = net.lowered.get_submodule(name) if name else net.lowered
        twin.training = module.training
    for stage in net.graph.stages:
        routing_of(net.lowered, stage).train(model.training)
    net.training = model.training
    return net


def _routes(graph: DynamicGraph) -> bool:
    """Whether some block has a candidate edge around it."""
    return any(len(graph.edges(stage)) > len(graph.nodes(stage)) - 1 for stage in graph.stages)


def _kept_classes(model: nn.Module, leaves: Collection[type[nn.Module]]) -> tuple[str, ...]:
    """Qualified names of the classes that `leaves` keep whole in `model`."""
    kept = {type(module) for module in model.modules() if isinstance(module, tuple(leaves))}
    return tuple(sorted(qualified_name(one) for one in kept))


def _nothing(name: str, found: Discovery, opaque: Sequence[Opaque], branches: str) -> str:
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
