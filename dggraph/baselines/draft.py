"""From a backbone to the network of a method: trace, discover, edit the graph, check, report.

A method opens a draft, adds modules and rewires fx nodes, and finishes it. The draft's graph is
that of the backbone, lowered without routed stages: state-dict keys and outputs are the backbone's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from dggraph.baselines.anatomy import Branch, blocks_of, branches_of
from dggraph.baselines.network import (
    BaselineNetwork,
    BaselineReport,
    Exactness,
    Option,
)
from dggraph.compiler.copying import copy_model
from dggraph.compiler.discovery import Discovery, discover
from dggraph.compiler.edge_writer import Deciders
from dggraph.compiler.fingerprints import fingerprint
from dggraph.compiler.lowered import ROUTING, LoweredModule, plain_owner
from dggraph.compiler.lowering import lower
from dggraph.compiler.profiling import profile
from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.compiler.tracing import trace
from dggraph.errors import InputError, LoweringError, NothingToRouteError
from dggraph.graph.ir import DynamicGraph
from dggraph.models.registry import LoadedModel
from dggraph.network.assembly import freeze_unused_
from dggraph.network.conversion_arguments import read_given
from dggraph.network.standin import note_weights_
from dggraph.ops.gating import find_gate
from dggraph.ops.routing import find_router
from dggraph.system.devices import first_weight
from dggraph.system.torch_private import tree_leaves

MAX_RELATIVE_DIFFERENCE = 1e-3
"""The largest difference that passes as rounding, relative to the largest output."""


@dataclass(slots=True, kw_only=True)
class Draft:
    """A backbone while a method edits it."""

    loaded: nn.Module | LoadedModel
    backbone: nn.Module
    """An untouched copy."""
    example: Tensor
    flow: Flow
    found: Discovery
    lowered: LoweredModule
    added: nn.Module
    """What the method adds, one child per place."""
    by_name: dict[str, fx.Node]
    """The nodes of the lowered graph, under the names that they have in `flow`."""
    changed: list[str] = field(default_factory=list)
    unchanged: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, fx.Node] = field(default_factory=dict)
    """Nodes whose values the network returns beside the output."""

    @property
    def graph(self) -> fx.Graph:
        """The graph to edit."""
        return self.lowered.graph

    def blocks(self) -> list[tuple[Region, int]]:
        """Return the blocks, with the axis of their channels."""
        return list(blocks_of(self.found))

    def branches(self) -> list[Branch]:
        """Return the branches of all blocks in execution order."""
        found = [branches_of(self.flow, block, axis) for block, axis in self.blocks()]
        return [branch for branches in found for branch in branches]

    def call(self, path: str, module: nn.Module, inputs: Sequence[fx.Node]) -> fx.Node:
        """Add `module`, named after `path`, and return its call on `inputs`, before the next op.

        The insertion point is that of `graph`.
        """
        name = _free_name(self.added, path)
        weight = first_weight(self.backbone)
        self.added.add_module(name, module.to(weight.device, weight.dtype))
        target = f"{ROUTING}method.{name}"
        return self.graph.create_node("call_module", target, tuple(inputs), name=f"dg_{name}")

    def redirect(self, fx_node: fx.Node, mapped: fx.Node) -> None:
        """Let all readers of `fx_node` but `mapped` read `mapped` instead. In place."""
        fx_node.replace_all_uses_with(mapped, delete_user_cb=lambda user: user is not mapped)

    def change_end(self, branch: Branch, module: nn.Module) -> None:
        """Let `module` map the value that leaves `branch`. In place."""
        end = self.by_name[branch.end]
        with self.graph.inserting_after(end):
            mapped = self.call(branch.block.path, module, (end,))
        if branch.add:
            self.by_name[branch.add].replace_input_with(end, mapped)
        else:
            self.redirect(end, mapped)
        self.changed.append(branch.block.path)


def open_draft(
    model: nn.Module | str | LoadedModel, example_input: Tensor | None, *, method: str
) -> Draft:
    """Trace and lower `model` as it is.

    Args:
        model: As for `convert`; neither changed nor shared.
        example_input: As for `convert`.
        method: For errors.

    Raises:
        InputError: The model or the input is not valid.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: No blocks were found.
    """
    loaded, given, example = read_given(model, example_input)
    with ordinary_surroundings(example.device):
        backbone = copy_model(given)
        traced = trace(backbone, (), example)
        flow = Flow(traced, profile(traced.module, traced.graph, example))
        found = discover(flow)
        scope, router = find_router("node")
        lowered = lower(
            flow,
            (),
            (),
            graph=DynamicGraph(type(given).__name__, stages=(), nodes=(), edges=()),
            deciders=Deciders(
                scope=scope, router=router, gate=find_gate("anchored"), threshold=0.0
            ),
        ).module
    if not found.stages:
        raise NothingToRouteError(
            f"{method} changes the blocks of a backbone, and {type(given).__name__} has none:"
            " no module repeats with one shape. Choose another backbone."
        )
    draft = Draft(
        loaded=loaded,
        backbone=given,
        example=example,
        flow=flow,
        found=found,
        lowered=lowered,
        added=nn.Module(),
        by_name={fx_node.name: fx_node for fx_node in lowered.graph.nodes},
    )
    draft.unchanged += [(path, f"{reason}") for path, macs, reason in found.static if macs]
    return draft


def finish(
    draft: Draft,
    *,
    method: str,
    options: Mapping[str, Option],
    exactness: Exactness,
    reason: str,
    kind: type[BaselineNetwork] = BaselineNetwork,
) -> BaselineNetwork:
    """Return the network that `draft` has become, after comparing it with the backbone.

    Args:
        draft: The edited backbone.
        method: The name of the method.
        options: Its options.
        exactness: Whether the network is meant to start as the backbone.
        reason: Why.
        kind: The class of the network.

    Raises:
        LoweringError: It does not start as the backbone, but should.
        InputError: The method found nothing to change.
    """
    if not draft.changed:
        why = "; ".join(f"{path}: {reason}" for path, reason in draft.unchanged[:3])
        raise InputError(
            f"{method} found nothing to change in {type(draft.backbone).__name__} ({why})."
            " Choose another method or backbone."
        )
    output = next(iter(reversed(draft.graph.nodes)))
    (structure, _), *_ = output.args
    output.args = ((structure, dict(draft.values)),)
    owner = plain_owner(draft.lowered)
    owner.add_module(f"{ROUTING}method", draft.added)
    lowered = LoweredModule(owner, draft.graph)
    lowered.graph.lint()
    for name in freeze_unused_(lowered):
        draft.unchanged.append((name, "not read by the graph, so frozen"))
    report = BaselineReport(
        changed=tuple(dict.fromkeys(draft.changed)),
        unchanged=tuple(draft.unchanged),
        exactness=exactness,
        reason=reason,
        max_difference=_difference(lowered, draft, method, exactness),
        num_added_parameters=sum(parameter.numel() for parameter in draft.added.parameters()),
    )
    net = kind(
        lowered,
        backbone=draft.flow.module,
        method=method,
        options=options,
        report=report,
        fingerprint=fingerprint(draft.flow.trace.graph),
        input_shape=tuple(draft.example.shape[1:]),
    )
    if isinstance(draft.loaded, LoadedModel):
        net.source, net.source_options = draft.loaded.source, draft.loaded.options
        net.preprocess, net.labels = draft.loaded.preprocess, draft.loaded.labels
        note_weights_(net, draft.loaded.weights_origin)
    for name, module in draft.backbone.named_modules():
        twin = net.lowered.get_submodule(name) if name else net.lowered
        twin.training = module.training
    draft.added.train(draft.backbone.training)
    net.training = draft.backbone.training
    return net


def _difference(lowered: nn.Module, draft: Draft, method: str, exactness: Exactness) -> float:
    """Return max |backbone - lowered| in eval mode, and check it against what is claimed."""
    backbone = copy_model(draft.backbone).eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randn((2, *draft.example.shape[1:]), generator=draw).to(draft.example)
    with torch.no_grad():
        expected = _tensors(backbone(images.clone()))
        got = _tensors(lowered.eval()(images.clone())[0])
    pairs = list(zip(got, expected, strict=True))
    difference = max((float((one - other).abs().max()) for one, other in pairs), default=0.0)
    scale = max((float(other.abs().max()) for _, other in pairs), default=0.0)
    allowed = {"to the bit": 0.0, "up to rounding": MAX_RELATIVE_DIFFERENCE * scale}
    if not difference <= allowed.get(exactness, float("inf")):
        raise LoweringError(
            f"{method} should start as the backbone {exactness}, but outputs differ by"
            f" {difference:.3g}. This is a defect of dggraph; please report it with the backbone,"
            f" {type(draft.backbone).__name__}."
        )
    return difference


def _tensors(output: object) -> list[Tensor]:
    return [
        leaf.detach()
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _free_name(owner: nn.Module, path: str) -> str:
    name = path.replace(".", "_") or "block"
    number = 2
    while name in owner._modules:
        name, number = f"{path.replace('.', '_')}_{number}", number + 1
    return name
