"""`convert`: trace, profile, discover, build, wire, lower, check, report."""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import networkx as nx
import torch
from torch import Tensor, nn

from dggraph.compiler.building import ResidualChoice, build_graph, choose_residuals
from dggraph.compiler.discovery import Discovery, discover
from dggraph.compiler.lowering import Deciders, LoweredModule, lower
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow
from dggraph.compiler.tracing import Trace, fingerprint, trace
from dggraph.errors import InputError, LoweringError, NothingToRouteError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.wiring import Wiring, wire
from dggraph.ops.gating import GATES
from dggraph.ops.routing import find_router
from dggraph.runtime.cost import tabulate_macs
from dggraph.runtime.models import load_model
from dggraph.runtime.network import DynamicNetwork, Recipe, pinned_gates, static_weights
from dggraph.runtime.preprocessing import Preprocess
from dggraph.runtime.report import ConversionReport, StaticPart, report_stages

CHECK_BATCH = 3
LIFT_TOLERANCE = 1e-5


def convert(
    model: nn.Module | str,
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
        model: a backbone, or a MODEL name (`resnet50`, `timm:regnety_008`, `package.module:function`). Never changed or shared.
        example_input: (1 or more, C, H, W); by default 224 pixels (torchvision; 299 for Inception) or timm's own input size.
        wiring: a name, a `Wiring`, an edge list of node names, or a networkx graph of them; united with the static edges.
        residual: `keep` leaves `x + F(x)` in the block, `lift` turns the skip into edges, `auto` lifts where that is exact.
        router: `node`, `stage`, with a hidden layer `node(16)`, or a registered one.
        gate: `anchored`, `sigmoid`, or a registered one; None is `anchored`, with `init="scratch"` `sigmoid`.
        threshold: weights at or below it are dropped; from 0 up to, but not, 1.
        init: `preserve` starts as the backbone; `scratch` is for training from nothing.
        stages: overrides discovery: per stage name, the module paths of its blocks in order.
        leaves: module classes to keep as one opaque call.
        allow_static: return a network without routed blocks instead of raising.

    Raises:
        InputError: an option or the input does not fit.
        TraceError: the backbone has data-dependent control flow.
        DiscoveryError: `stages` does not describe blocks of the backbone.
        NothingToRouteError: no block has a candidate edge around it.
        WiringError: the wiring names an impossible edge.
        LoweringError: the self-check found that the lowered network differs from the backbone.
    """
    gate = gate or ("sigmoid" if init == "scratch" else "anchored")
    _check_options(router=router, gate=gate, residual=residual, init=init, threshold=threshold)
    source, preprocess, labels = None, None, None
    if isinstance(model, str):
        loaded = load_model(model)
        model, source, preprocess, labels = loaded.model, loaded.source, loaded.preprocess, loaded.labels
    if isinstance(model, DynamicNetwork):
        raise InputError("this network is converted already. To wire it differently, convert its backbone again.")
    example = _example_input(model, example_input, preprocess)
    traced = trace(model, leaves)
    shapes = profile(traced.module, traced.graph, example)
    flow = Flow(traced, shapes)
    found = discover(traced, shapes, stages)
    residuals = choose_residuals(flow, found.stages, residual, is_complete=wiring == "complete")
    graph = wire(build_graph(type(model).__name__, found.stages, residuals), wiring)
    if not allow_static and not any(len(graph.edges(stage)) > len(graph.nodes(stage)) - 1 for stage in graph.stages):
        raise NothingToRouteError(_nothing(type(model).__name__, found))
    recipe = Recipe(
        fingerprint=fingerprint(traced.graph),
        found=found.stages,
        router=router,
        gate=gate,
        input_shape=tuple(example.shape[1:]),
    )
    net = assemble(flow, traced, graph, recipe, found, threshold=threshold)
    net.source, net.preprocess, net.labels = source, preprocess, labels
    return check_static(net, model, example)


def assemble(
    flow: Flow, traced: Trace, graph: DynamicGraph, recipe: Recipe, found: Discovery, *, threshold: float
) -> DynamicNetwork:
    """Lower `graph` and wrap the result; the last step of `convert` and of `load`."""
    scope, make_router = find_router(recipe.router)
    deciders = Deciders(scope=scope, router=make_router, gate=GATES[recipe.gate], threshold=threshold)
    lowered = lower(flow, recipe.found, graph, deciders)
    parameter = next((p for p in traced.module.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        for stage in graph.stages:
            lowered.module.get_submodule(f"dg_{stage}").to(device=parameter.device, dtype=parameter.dtype)
    report = ConversionReport(
        name=graph.name,
        stages=report_stages(graph, found),
        total_macs=found.total_macs,
        static=tuple(StaticPart(module_path=path, macs=macs, reason=reason) for path, macs, reason in found.static),
        frozen=_freeze_unused(lowered.module),
        opaque=tuple(leaf.__name__ for leaf in traced.leaves),
        max_difference=0.0,
    )
    table = tabulate_macs(graph, lowered.module, scope, found.total_macs)
    return DynamicNetwork(lowered.module, graph=graph, plan=lowered.plan, report=report, macs_table=table, recipe=recipe)


def check_static(net: DynamicNetwork, model: nn.Module, example: Tensor) -> DynamicNetwork:
    """Compare with the backbone at a batch size it was not traced at, static edges at weight 1; return `net`, in the model's mode.

    Raises:
        LoweringError: they differ, beyond 1e-5 max |y| where several residuals of a block were lifted, at all elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((CHECK_BATCH, *example.shape[1:]), generator=generator).to(example) * 2 - 1
    reference = copy.deepcopy(model).eval()
    net.eval()
    with torch.no_grad(), pinned_gates(net, static_weights(net.graph)):
        expected, actual = _tensors(reference(x)), _tensors(net(x))
    difference = max(
        (float((a.double() - b.double()).abs().max()) for a, b in zip(expected, actual, strict=True) if a.numel()),
        default=0.0,
    )
    scale = max((float(a.abs().max()) for a in expected if a.numel()), default=0.0)
    is_equal = all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in zip(expected, actual, strict=True))
    is_lifted = any(stage.residual == "lift" for stage in net.graph.stages.values())
    if not is_equal and not (is_lifted and difference <= LIFT_TOLERANCE * scale):
        raise LoweringError(
            f"the lowered {net.graph.name} differs from the backbone by {difference:.3g} at batch {CHECK_BATCH} (traced at 2), so it "
            'is not handed out. The forward may read the batch size or change state; try residual="keep", or leave the stage '
            "out with `stages=`."
        )
    net.report = replace(net.report, max_difference=difference)
    for name, module in model.named_modules():
        twin = net.lowered.get_submodule(name) if name else net.lowered
        twin.training = module.training
    for stage in net.graph.stages:
        net.lowered.get_submodule(f"dg_{stage}").train(model.training)
    net.training = model.training
    return net


def _check_options(*, router: str, gate: str, residual: str, init: str, threshold: float) -> None:
    find_router(router)
    choices = {
        "gate": (gate, tuple(GATES)),
        "residual": (residual, ("auto", "keep", "lift")),
        "init": (init, ("preserve", "scratch")),
    }
    for option, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"{option}={value!r} is not one of {', '.join(known)}.")
    if not 0 <= threshold < 1:
        raise InputError(f"threshold={threshold} is outside [0, 1); static edges weigh 1 and must stay open, use 0.5.")


def _example_input(model: nn.Module, example: Tensor | None, preprocess: Preprocess | None) -> Tensor:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if example is None:
        size = preprocess.input_size if preprocess is not None else _known_size(model)
        if size is None:
            raise InputError(
                f"{type(model).__name__} does not say its input size. Pass `example_input`, a float tensor (1, C, H, W) of the size "
                "you will use."
            )
        return torch.zeros((1, *size), dtype=parameter.dtype, device=parameter.device)
    if example.ndim != 4 or not example.is_floating_point() or example.shape[0] < 1:
        raise InputError(
            f"example_input has shape {tuple(example.shape)} and dtype {example.dtype}; an image batch is a float tensor (B, C, H, W)."
        )
    return example.detach().to(parameter)


def _known_size(model: nn.Module) -> tuple[int, int, int] | None:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        channels, height, width = config["input_size"]
        return channels, height, width
    if type(model).__module__.startswith("torchvision.models."):
        side = 299 if type(model).__name__ == "Inception3" else int(getattr(model, "image_size", 224))
        return 3, side, side
    return None


def _freeze_unused(lowered: LoweredModule) -> tuple[str, ...]:
    """Plain DDP fails on parameters that never get a gradient, so those the graph does not read stop asking for one."""
    used: set[int] = set()
    for fx_node in lowered.graph.nodes:
        if fx_node.op == "call_module":
            used.update(id(parameter) for parameter in lowered.get_submodule(str(fx_node.target)).parameters())
        elif fx_node.op == "get_attr":
            owner, _, name = str(fx_node.target).rpartition(".")
            used.add(id(getattr(lowered.get_submodule(owner), name)))
    unused = [name for name, parameter in lowered.named_parameters() if id(parameter) not in used and parameter.requires_grad]
    for name in unused:
        lowered.get_parameter(name).requires_grad_(False)
    return tuple(unused)


def _nothing(name: str, found: Discovery) -> str:
    largest = "; ".join(f"{path}: {reason}" for path, _, reason in found.static[:3])
    return (
        f"{name} has no block with a candidate edge around it, so there is nothing to route ({largest or 'no convolutions found'}). "
        "Name the blocks with `stages={...}`, choose another wiring, or pass `allow_static=True`."
    )


def _tensors(output: Any) -> list[Tensor]:
    """Every tensor in a backbone's output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for part in output for tensor in _tensors(part)] if isinstance(output, list | tuple) else []
