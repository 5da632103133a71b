"""Networks optimised for inference: folded batch norms, channels-last weights, no gradients.

A norm is folded into the convolution before it if it is the convolution's only reader, both are
called once, neither has a hook, and both lie in the same block or outside all blocks. The parts
that an executor runs alone therefore stay complete. The plan then names the convolution in place of
the norm. timm's `BatchNormAct2d` is replaced by its activation. Linear layers before a norm stay
unchanged, because it depends on the shape whether `BatchNorm1d` counts their features or their
tokens.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dggraph.compiler.calls import stand_in
from dggraph.compiler.contexts import called_module
from dggraph.compiler.copying import STATE_HOOKS
from dggraph.compiler.foreign_hooks import HOOKS
from dggraph.compiler.inlining import Inliner, PreparedInliner, compiled
from dggraph.compiler.lowered import OWNED, LoweredModule, routing_of, weight_dtype
from dggraph.compiler.partition import Program
from dggraph.compiler.planning import BlockPlan, StagePlan
from dggraph.errors import InputError
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.network.standin import note_weights_
from dggraph.system.attributes import share_keys_
from dggraph.system.torch_private import COMPILED, has_forward_hooks

_CONVOLUTIONS: set[type[nn.Module]] = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
_NORMS: set[type[nn.Module]] = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_TIMM_CONVOLUTION = "timm.layers.conv2d_same.Conv2dSame"
_TIMM_NORM = "timm.layers.norm_act.BatchNormAct2d"


class InferenceNetwork(DynamicNetwork):
    """The result of `optimize_for_inference`: it runs, records and exports like any network.

    It can be neither trained nor saved. Its weights are bound at the first pass. A later change of
    modules, weights or hooks counts at once, and what changed is bound anew. The one exception is
    what `tensor.data` writes in place in a router or gate.
    """

    _dtype: torch.dtype | None = None
    _is_compiled: bool = False

    def forward(self, x: Tensor | None = None, *, return_gates: bool = False, **named: Any) -> Any:
        """Run as `DynamicNetwork.forward` does, on images converted to the type of the weights."""
        if self._dtype is not None:
            x = _converted(x, self._dtype)
            named = {name: _converted(value, self._dtype) for name, value in named.items()}
        return super().forward(x, return_gates=return_gates, **named)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InferenceNetwork":
        super()._apply(fn, recurse)
        if self._dtype is not None:
            self._dtype = weight_dtype(self.lowered)
        return self

    def _inliner_of(self, program: Program) -> Inliner:
        return PreparedInliner(
            program, self._structure.seen, compiled if self._is_compiled else None
        )

    def train(self, mode: bool = True) -> "InferenceNetwork":
        """Stay in eval mode.

        Raises:
            InputError: `mode` is True.
        """
        if mode:
            raise InputError(
                f"this {self.graph.name} was optimised for inference: its norms are folded and its"
                " weights are frozen, so it cannot be trained. Train the network that it was made"
                " from, then call optimize_for_inference again."
            )
        super().train(False)
        return self


def optimize_for_inference(
    net: DynamicNetwork,
    *,
    dtype: torch.dtype | None = None,
    compile: bool = False,
    images: Tensor | None = None,
) -> InferenceNetwork:
    """Return a copy of `net` that computes the same outputs faster.

    It is in eval mode, its batch norms are folded into the convolutions before them, convolution
    weights (and so features) are in channels-last layout, and no parameter requires a gradient.
    Outputs agree to 1e-4 of the largest output. Paths are the same if no weight lies within about
    1e-4 of its threshold. All executors, `record`, `torch.compile` and autocast work as before.

    The copy is not an exchange format: the state dict lacks the keys of folded norms, so
    `dggraph.save` refuses it. Save `net`, and optimise after loading.

    Args:
        net: A converted network; it is not changed.
        dtype: Type of weights and features, such as `torch.bfloat16`; images are converted, and
            routers stay in float32. None keeps the type of `net`. In bfloat16, outputs agree to
            about 2 % of the largest.
        compile: Let Inductor compile every block, at the first pass: some ten seconds for
            MobileNetV2. The pieces agree to 1e-4. On the CPUs that were measured it is slower than
            the plain blocks, see the guide on inference.
        images: (B, C, H, W), like those to come. They run once, so that blocks are bound and the
            patterns of their paths are known before the first image that counts.

    Raises:
        InputError: `dtype` is not a floating-point type.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> fast, x = dggraph.optimize_for_inference(net), torch.rand(2, 3, 32, 32)
        >>> with torch.no_grad():
        ...     torch.allclose(fast(x), net.eval()(x), atol=1e-4)
        True
    """
    require_converted(net, "optimize_for_inference")
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(
            f"dtype={dtype} is not a floating-point type. Use for example torch.bfloat16."
        )
    lowered = copy.deepcopy(net.lowered).eval()
    folded = _fold_norms_(lowered, net.plan)
    for module in lowered.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)
    lowered.requires_grad_(False)
    share_keys_(lowered)
    plan = tuple(_without(stage, folded) for stage in net.plan)
    twin = InferenceNetwork(
        lowered,
        backbone=net._shell,
        graph=net.graph,
        plan=plan,
        report=net.report,
        macs_table=net.macs_table,
        blueprint=net.blueprint,
        converted=net.converted,
    )
    own = {COMPILED, "lowered", "plan", "_inliner", "_shell", "_structure", "_constants"}
    own.update(OWNED, STATE_HOOKS)
    vars(twin).update({name: value for name, value in vars(net).items() if name not in own})
    vars(twin).update({name: copy.copy(vars(net)[name]) for name in HOOKS})
    if dtype is not None:
        twin.to(dtype)
        for stage in twin.graph.stages:
            routing_of(lowered, stage).float()
    if dtype is None and isinstance(net, InferenceNetwork):
        dtype = net._dtype
    vars(twin).update(_dtype=dtype, _is_compiled=compile)
    note_weights_(twin, net.weights_origin)  # folded weights differ from the probe
    twin.eval()
    if images is not None:
        with torch.inference_mode():
            for image in images:
                twin(image[None])
            twin(images)
    return twin


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """Return images in `dtype`. Other values come back unchanged, to be refused later."""
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value


def _fold_norms_(lowered: LoweredModule, plan: Sequence[StagePlan]) -> dict[str, str]:
    """Fold all suitable norms and return {removed fx node: the fx node in its place}. In place."""
    folded: dict[str, str] = {}
    for conv_node, norm_node in _pairs(lowered, plan):
        conv, norm = (
            lowered.get_submodule(str(fx_node.target)) for fx_node in (conv_node, norm_node)
        )
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        lowered.set_submodule(str(conv_node.target), fuse_conv_bn_eval(conv, norm))
        if type(norm) not in _NORMS:
            lowered.set_submodule(str(norm_node.target), norm.get_submodule("act"))
            continue
        stand_in(conv_node, norm_node)
        norm_node.replace_all_uses_with(conv_node)
        lowered.graph.erase_node(norm_node)
        lowered.delete_submodule(str(norm_node.target))
        folded[norm_node.name] = conv_node.name
    lowered.recompile()
    return folded


def _pairs(lowered: LoweredModule, plan: Sequence[StagePlan]) -> list[tuple[fx.Node, fx.Node]]:
    """Return the convolutions and the norms that can be folded into them."""
    block_of = {
        name: block.node for stage in plan for block in stage.blocks for name in block.fx_nodes
    }
    calls: Counter[int] = Counter()
    for fx_node in lowered.graph.nodes:
        path = called_module(fx_node)
        if path is not None:
            calls.update({id(module) for module in lowered.get_submodule(path).modules()})
        elif fx_node.op == "get_attr":
            calls[id(lowered.get_submodule(str(fx_node.target).rpartition(".")[0]))] += 1
    pairs = []
    for norm_node in lowered.graph.nodes:
        if norm_node.op != "call_module" or norm_node.kwargs or len(norm_node.args) != 1:
            continue
        (conv_node,) = norm_node.args
        if (
            not isinstance(conv_node, fx.Node)
            or conv_node.op != "call_module"
            or set(conv_node.users) != {norm_node}
        ):
            continue
        conv, norm = (
            lowered.get_submodule(str(fx_node.target)) for fx_node in (conv_node, norm_node)
        )
        is_known = _is_a(conv, _CONVOLUTIONS, _TIMM_CONVOLUTION) and _is_a(norm, _NORMS, _TIMM_NORM)
        if not is_known or norm.running_mean is None or calls[id(conv)] > 1 or calls[id(norm)] > 1:
            continue
        is_hooked = has_forward_hooks(conv) or has_forward_hooks(norm)
        if not is_hooked and block_of.get(conv_node.name) == block_of.get(norm_node.name):
            pairs.append((conv_node, norm_node))
    return pairs


def _is_a(module: nn.Module, types: set[type[nn.Module]], timm_name: str) -> bool:
    """Whether the class is exactly one of `types`, or timm's class `timm_name`.

    A subclass may compute something else.
    """
    return (
        type(module) in types
        or f"{type(module).__module__}.{type(module).__qualname__}" == timm_name
    )


def _without(stage: StagePlan, folded: Mapping[str, str]) -> StagePlan:
    """Return `stage` after folding; `folded` is {removed fx node: the fx node in its place}."""

    def block_without(block: BlockPlan) -> BlockPlan:
        return replace(
            block,
            output=folded.get(block.output, block.output),
            fx_nodes=tuple(name for name in block.fx_nodes if name not in folded),
            reads=tuple(
                replace(read, fx_node=folded.get(read.fx_node, read.fx_node))
                for read in block.reads
            ),
        )

    return replace(
        stage,
        entry=folded.get(stage.entry, stage.entry),
        blocks=tuple(block_without(block) for block in stage.blocks),
    )
