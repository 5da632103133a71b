"""`convert`: trace, profile, discover, build, wire, lower, check, report."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import networkx as nx
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dggraph.compiler.copying import copy_model, stored_activations
from dggraph.compiler.discovery import Discovery, discover
from dggraph.compiler.fingerprints import fingerprint, qualified_name
from dggraph.compiler.lowered import LoweredModule, routing_of
from dggraph.compiler.lowering import Deciders, lower
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow
from dggraph.compiler.static_graph import ResidualChoice, build_graph, choose_residuals
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.compiler.tracing import Opaque, Trace, trace
from dggraph.errors import InputError, NothingToRouteError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.wiring import Wiring, is_complete, wire
from dggraph.models.preprocessing import Preprocess, input_size_of
from dggraph.models.registry import LoadedModel, load_model
from dggraph.models.reparameterisation import advice
from dggraph.network.cost import tabulate_macs
from dggraph.network.network import Blueprint, DynamicNetwork
from dggraph.network.report import ConversionReport, StaticPart, note_dense, report_stages
from dggraph.network.skipping_checks import check_skipping_
from dggraph.network.static_checks import check_images, check_start, check_static
from dggraph.network.training_checks import check_autocast, check_gradients
from dggraph.ops.gating import GATES
from dggraph.ops.routing import find_router


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
        model: a backbone, or a MODEL name (`resnet50`, `timm:regnety_008`,
            `package.module:function`). Never changed or shared.
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
    _check_options(
        router=router, gate=gate, residual=residual, init=init, threshold=threshold, leaves=leaves
    )
    loaded = load_model(model) if isinstance(model, str) else None
    backbone = plain_backbone(loaded.model if loaded is not None else model)
    example = _example_input(
        backbone, example_input, loaded.preprocess if loaded is not None else None
    )
    with ordinary_surroundings(example.device):
        traced = trace(backbone, leaves, example)
        shapes = profile(traced.module, traced.graph, example)
        flow = Flow(traced, shapes)
        found = discover(traced, shapes, stages)
        kept_because = choose_residuals(
            flow, found.stages, residual, is_complete=is_complete(wiring)
        )
        name = type(backbone).__name__
        graph = wire(
            build_graph(
                name, found.stages, ["keep" if reason else "lift" for reason in kept_because]
            ),
            wiring,
        )
        if not allow_static and not any(
            len(graph.edges(stage)) > len(graph.nodes(stage)) - 1 for stage in graph.stages
        ):
            raise NothingToRouteError(_nothing(name, found, traced.opaque, advice(backbone)))
        blueprint = Blueprint(
            fingerprint=fingerprint(traced.graph),
            found=found.stages,
            static=found.static,
            kept_because=kept_because,
            router=router,
            gate=gate,
            leaves=tuple(
                sorted(
                    {
                        qualified_name(type(m))
                        for m in backbone.modules()
                        if isinstance(m, tuple(leaves))
                    }
                )
            ),
            input_shape=tuple(example.shape[1:]),
            dtype=str(example.dtype).removeprefix("torch."),
        )
        net = assemble(flow, traced, graph, blueprint, threshold=threshold).eval()
        reference = copy_model(backbone)
        reference.eval()
        difference, static = check_static(net, reference, example)
        check_start(net, example, init, static)
        images = check_images(net, reference, example)
        check_gradients(net, reference, images)
        check_autocast(net, reference, images)
        check_skipping_(net, images)
        net.report = replace(
            net.report,
            max_difference=difference,
            detached=stored_activations(backbone),
            branches=advice(backbone),
            stages=note_dense(net.report.stages, net.plan),
        )
    if loaded is not None:
        note_source_(net, loaded)
    return _in_mode_of_(net, backbone)


def note_source_(net: DynamicNetwork, loaded: LoadedModel) -> None:
    """Let `net` know the name it was built from, and what is known of its images and classes."""
    net.source, net.source_options = loaded.source, loaded.options
    net.preprocess, net.labels = loaded.preprocess, loaded.labels


def assemble(
    flow: Flow, traced: Trace, graph: DynamicGraph, blueprint: Blueprint, *, threshold: float
) -> DynamicNetwork:
    """Lower `graph` and wrap the result; the last step of `convert` and of `load`."""
    scope, make_router = find_router(blueprint.router)
    deciders = Deciders(
        scope=scope, router=make_router, gate=GATES[blueprint.gate], threshold=threshold
    )
    lowered = lower(flow, traced.returned, blueprint.found, graph, deciders)
    parameter = next((p for p in traced.module.parameters() if p.is_floating_point()), None)
    if parameter is not None:
        for stage in graph.stages:
            routing = routing_of(lowered.module, stage).to(device=parameter.device)
            for (
                decider
            ) in routing.children():  # the threshold stays float32: bfloat16 would round 0.999 to 1
                decider.to(dtype=parameter.dtype)
    total_macs = sum(flow.profile.macs.values())
    report = ConversionReport(
        name=graph.name,
        stages=report_stages(graph, blueprint.found, blueprint.kept_because),
        total_macs=total_macs,
        static=tuple(
            StaticPart(module_path=path, macs=macs, reason=reason)
            for path, macs, reason in blueprint.static
        ),
        frozen=_freeze_unused(lowered.module),
        opaque=traced.opaque,
        assumptions=traced.assumptions,
        checkpointed=traced.checkpointed,
        eval_only=traced.eval_only,
        hooks=traced.hooks,
        max_difference=0.0,
    )
    table = tabulate_macs(graph, lowered.module, scope, total_macs)
    return DynamicNetwork(
        lowered.module,
        backbone=traced.module,
        graph=graph,
        plan=lowered.plan,
        report=report,
        macs_table=table,
        blueprint=blueprint,
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


def plain_backbone(model: object) -> nn.Module:
    """`model`, taken out of the wrappers of `torch.compile` and of data parallelism.

    Raises:
        InputError: it is not a module, is converted already, or has not seen its first input yet.
    """
    model = (
        getattr(model, "_orig_mod", model) if type(model).__name__ == "OptimizedModule" else model
    )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if isinstance(model, DynamicNetwork | LoweredModule):
        raise InputError(
            "this network is converted already. To wire it differently, convert its backbone again."
        )
    if not isinstance(model, nn.Module):
        given, hint = repr(model)[:80], ""
        if isinstance(model, type):
            given, hint = (
                f"the class {model.__name__}",
                f" Call it: convert({model.__name__}(...)).",
            )
        elif isinstance(model, Mapping):
            given = f"a mapping ({type(model).__name__})"
            hint = (
                " A state dict holds weights only: build the model, model.load_state_dict(...), and"
                " convert that."
            )
        raise InputError(f"convert takes an nn.Module or a MODEL name, not {given}.{hint}")
    is_detection = any(
        kind.__module__.startswith("torchvision.models.detection") for kind in type(model).__mro__
    )
    if is_detection and hasattr(model, "backbone"):
        raise InputError(
            f"{type(model).__name__} is a detector and takes a list of images. Convert the backbone"
            " inside it, in place: dggraph.convert_backbone_(detector)."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"{name!r} is on the meta device and has no values, so nothing can be compared with"
                " the backbone. Build the backbone outside torch.device('meta'), or call"
                " model.to_empty(device='cpu') and load its weights, then convert it."
            )
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise InputError(
            f"{lazy[0]!r} is lazy: its shape is not known yet. Run the backbone once on an input,"
            " then convert it."
        )
    return model


def _check_options(
    *, router: str, gate: str, residual: str, init: str, threshold: object, leaves: object
) -> None:
    find_router(router)
    choices = {
        "gate": (gate, tuple(GATES)),
        "residual": (residual, ("auto", "keep", "lift")),
        "init": (init, ("preserve", "scratch")),
    }
    for option, (value, known) in choices.items():
        if value not in known:
            raise InputError(f"{option}={value!r} is not one of {', '.join(known)}.")
    if (
        isinstance(leaves, str)
        or not isinstance(leaves, Collection)
        or not all(isinstance(leaf, type) for leaf in leaves)
    ):
        raise InputError(
            f"leaves={leaves!r} is not a collection of module classes; write leaves=(MyBlock,)."
        )
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise InputError(f"threshold={threshold!r} is not a number; use 0.5.")
    if not 0 <= threshold < 1:
        raise InputError(
            f"threshold={threshold} is outside [0, 1); static edges weigh 1 and must stay open, use"
            " 0.5."
        )


def _example_input(
    model: nn.Module, example: Tensor | None, preprocess: Preprocess | None
) -> Tensor:
    parameter = next(
        (p for p in model.parameters() if p.is_floating_point()), torch.zeros((), device="cpu")
    )
    if example is None:
        size = preprocess.input_size if preprocess is not None else input_size_of(model)
        if size is None:
            raise InputError(
                f"{type(model).__name__} does not say its input size. Pass `example_input`"
                " (--input-size), a float tensor (1, C, H, W) of the size you will use."
            )
        return torch.zeros((1, *size), dtype=parameter.dtype, device=parameter.device)
    if not isinstance(example, Tensor):
        raise InputError(
            f"example_input is {type(example).__name__}; an image batch is a float tensor (B, C,"
            " H, W)."
        )
    if example.is_meta:
        raise InputError(
            "example_input is on the meta device and has no values. Pass one from where the"
            " backbone is, for example zeros."
        )
    if example.ndim == 5:
        raise InputError(
            f"example_input has shape {tuple(example.shape)}: clips (B, C, T, H, W). convert takes"
            " backbones of images (B, C, H, W): convert the one inside your model, and call it"
            " with frames folded into the batch, clips.transpose(1, 2).flatten(0, 1)."
        )
    if example.ndim != 4 or not example.is_floating_point() or example.shape[0] < 1:
        raise InputError(
            f"example_input has shape {tuple(example.shape)} and dtype {example.dtype}; an image"
            " batch is a float tensor (B, C, H, W)."
        )
    return example.detach().to(parameter)


def _freeze_unused(lowered: LoweredModule) -> tuple[str, ...]:
    """Plain DDP fails on parameters that never get a gradient, so those the graph does not read
    stop asking for one; their names.
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
        " Name the blocks with `stages={...}`, choose another wiring, or pass"
        " `allow_static=True`."
    )
