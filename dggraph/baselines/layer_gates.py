"""Skipping of residual blocks by one gate each: ConvNet-AIG (arXiv 1711.11503).

Trained, a gate multiplies its block's branch. In evaluation `executor="sparse"` runs dggraph's own
executor instead, in which closed blocks are not computed. It runs the complete graph over each
stage's blocks, whose node routers are made of the same gates: of the edges out of a node, the one
to the next open block is open. Both compute the same function, since a gated block is
`x + g F(x)`, or the ReLU of it for an x that is not negative.

Shape suffixes: B images, C channels, L gated blocks, E edges out of one node.
"""

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dggraph.baselines.anatomy import Branch, branches_of, spine_of
from dggraph.baselines.draft import finish, open_draft
from dggraph.baselines.network import BaselineNetwork, Values
from dggraph.baselines.options import above_zero, at_least
from dggraph.baselines.skipping_twin import BlockGate, SkippingTwin, build_twin
from dggraph.compiler.regions import Flow, Region
from dggraph.errors import InputError
from dggraph.models.registry import LoadedModel
from dggraph.ops.aggregation import is_plain
from dggraph.ops.pooling import pool
from dggraph.system.modes import evaluating

OPEN_LOGIT = 1.7346
"""The logit of an untrained gate: log(0.85 / 0.15). In training, noise closes 15 % of blocks."""

SkipExecutor = Literal["masked", "sparse"]


def straight_gates(logits: Tensor, *, training: bool) -> Tensor:
    """Return binary gates; in training with Gumbel noise and a straight-through gradient.

    The difference of two Gumbel variables has a logistic distribution, so that one logit per gate
    is as two logits and an argmax. The gradient is that of the softmax at temperature 1.

    Args:
        logits: (B, 1).
        training: Whether the network trains.
    """
    if not training:
        return (logits > 0).to(logits.dtype)
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    noisy = logits + torch.log(uniform / (1 - uniform))
    soft = noisy.sigmoid()
    return soft + ((noisy > 0).to(logits.dtype) - soft).detach()


class LayerGate(BlockGate):
    """Pooling, a hidden layer with a ReLU, and one logit; 1 runs the block, 0 skips it.

    The authors' hidden layer has a batch norm, which this one does without, so that an image's gate
    never depends on the other images.
    """

    def __init__(self, num_channels: int, num_hidden: int, channel_axis: int) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.hidden = nn.Linear(num_channels, num_hidden)
        self.last = nn.Linear(num_hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, OPEN_LOGIT)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to gates (B, 1)."""
        channel_axis = self.channel_axis % features.ndim
        axes = [axis for axis in range(1, features.ndim) if axis != channel_axis]
        pooled_BC = pool(features, axes, features.dtype)
        return straight_gates(self.last(self.hidden(pooled_BC).relu()), training=self.training)

    @property
    def macs(self) -> int:
        """Its multiply-accumulates for one image."""
        return self.hidden.weight.numel() + self.last.weight.numel()


class LayerSkipNetwork(BaselineNetwork):
    """The network of `layer_skip`.

    Attributes:
        executor: `masked` (default) computes each block and multiplies its branch by the gate, as
            the authors do. `sparse` leaves out closed blocks in eval mode without gradients; in
            train mode, with gradients and under compilers the masked form runs in any case.
    """

    executor: SkipExecutor
    _twin: SkippingTwin

    def forward(self, x: Tensor | None = None, return_values: bool = False, **named: Any) -> Any:
        """Return the backbone's output for images x (B, C, H, W).

        Args:
            x: The images.
            return_values: Also return {"gates": (B, L)}, in the order of `report.changed`.
            named: The images under the backbone's own name for them.

        Raises:
            InputError: x is not a batch of images, or `executor` is neither of the two.
        """
        if self.executor not in ("masked", "sparse"):
            raise InputError(f"executor={self.executor!r} is not one of masked, sparse.")
        skips = self.executor == "sparse" and not (self.training or torch.is_grad_enabled())
        if x is None or named or is_plain() or not skips:
            return super().forward(x, return_values, **named)
        output, gates_BL = self._twin.run(self.lowered, x)
        return (output, {"gates": gates_BL}) if return_values else output

    def auxiliary_loss(self, values: Values) -> Tensor:
        """Return the squared distance of each gate's mean from `rate`, averaged over gates.

        Args:
            values: `gates` (B, L).
        """
        distance = values["gates"].mean(0) - float(self.options["rate"])
        return float(self.options["weight"]) * distance.square().mean()

    @torch.no_grad()
    def macs(self, x: Tensor) -> Tensor:
        """Return the multiply-accumulates of each image under `sparse`, as (B,) float64.

        They are those of the layers that an image reaches and of the gates that are asked.
        """
        with evaluating(self):
            _, values = super().forward(x, return_values=True)
        return self._macs_of_one(x) - self._twin.saved(values["gates"], self._macs_of_parts(x))


def layer_skip(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    rate: float = 0.7,
    weight: float = 1.0,
    hidden: int = 16,
) -> LayerSkipNetwork:
    """Skip residual blocks per image, by a gate each (ConvNet-AIG, arXiv 1711.11503).

    SkipNet (arXiv 1711.09485) gates the same blocks by other means. The gate reads the block's
    input and multiplies its branch by 0 or 1, trained with Gumbel noise, a straight-through
    gradient and a loss that pulls each gate's mean to `rate`. With `net.executor = "sparse"`, a
    closed block is not computed.

    Only blocks whose skip is the identity are gated: `x + F(x)`, and `relu(x + F(x))` behind
    another ReLU. In evaluation an untrained gate is open, so the network starts as the backbone,
    bitwise; in training, noise closes 15 % of the blocks at the start, as in the paper.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        rate: Share of the images that should run a block.
        weight: Factor of that loss.
        hidden: Width of the gates' hidden layer.

    Raises:
        InputError: An option is not valid, or the model is not, or no block can be skipped.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.baselines.layer_skip("dggraph:resnet20_8", rate=0.6)
        >>> net.executor = "sparse"
        >>> with torch.no_grad():
        ...     output, values = net(torch.rand(2, 3, 32, 32), return_values=True)
        >>> values["gates"].shape
        torch.Size([2, 7])
    """
    above_zero("rate", rate)
    if rate > 1:
        raise InputError(f"rate={rate} is a share of the images, of at most 1.")
    above_zero("weight", weight)
    at_least("hidden", hidden, 1)
    draft = open_draft(model, example_input, method="layer_skip")
    gates: dict[str, LayerGate] = {}
    calls = []
    for block, axis in draft.blocks():
        branches = _skippable(draft.flow, block, axis)
        if not branches:
            draft.unchanged.append((block.path, "its skip is not the identity"))
            continue
        gate = LayerGate(block.input_shape[axis - 1 if axis > 0 else axis], hidden, axis)
        source = draft.by_name[block.input]
        first = next(
            draft.by_name[name]
            for name in block.fx_nodes
            if source in draft.by_name[name].all_input_nodes
        )
        with draft.graph.inserting_before(first):
            call = draft.call(block.path, gate, (source,))
        for branch in branches:
            end, add = draft.by_name[branch.end], draft.by_name[branch.add]
            with draft.graph.inserting_before(add):
                scaled = draft.graph.call_function(scale_branch, (end, call))
            add.replace_input_with(end, scaled)
        gates[block.output] = gate
        calls.append(call)
        draft.changed.append(block.path)
    if calls:
        with draft.graph.inserting_after(calls[-1]):
            draft.values["gates"] = draft.graph.call_function(torch.cat, (calls, 1))
    net = finish(
        draft,
        method="layer_skip",
        options={"rate": rate, "weight": weight, "hidden": hidden},
        exactness="to the bit",
        reason="every gate starts open",
        kind=LayerSkipNetwork,
    )
    assert isinstance(net, LayerSkipNetwork)
    net.executor, net._twin = "masked", build_twin(draft, gates)
    return net


def scale_branch(features: Tensor, gate_B1: Tensor) -> Tensor:
    """Multiply the features (B, ...) of each image by its gate."""
    return features * gate_B1.reshape(-1, *[1] * (features.ndim - 1))


def _skippable(flow: Flow, block: Region, axis: int) -> list[Branch]:
    """Return the branches of a block that is the identity where all of them are 0; else nothing."""
    branches = branches_of(flow, block, axis)
    if not all(branch.is_identity for branch in branches):
        return []
    if branches[0].shortcut != block.input:
        return []
    if any(later.shortcut != earlier.add for earlier, later in pairwise(branches)):
        return []
    behind = [
        fx_node
        for fx_node in spine_of(flow, block)
        if flow.order[fx_node] > flow.order[flow.by_name[branches[-1].add]]
    ]
    if not behind:
        return branches
    is_relu = len(behind) == 1 and _is_relu(flow, behind[0].name)
    return branches if is_relu and _is_relu(flow, block.input) else []


def _is_relu(flow: Flow, name: str) -> bool:
    fx_node = flow.by_name[name]
    if fx_node.op == "call_module":
        return type(flow.module.get_submodule(str(fx_node.target))) is nn.ReLU
    return fx_node.target in (torch.relu, nn.functional.relu, "relu", "relu_")
