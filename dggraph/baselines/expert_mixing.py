"""Convolutions whose weights are a mixture of experts, chosen per image.

The backbone's own weights are the first expert and keep their names; the others are added. Both
methods replace the call of a convolution in the graph and differ in how the mixture is decided.

Shape suffixes: B images, C channels, K experts, O output channels, W elements of one weight.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dggraph.baselines.draft import Draft, finish, open_draft
from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.options import at_least, one_of
from dggraph.compiler.regions import Region
from dggraph.models.registry import LoadedModel

ExpertInit = Literal["preserve", "scratch"]


class MixedConv(nn.Module):
    """A convolution with the weights sum_k a_k(x) W_k, where W_0 belongs to the backbone.

    All images of a batch are convolved in one grouped convolution.

    Args:
        conv: The backbone's convolution.
        mixture: Maps features (B, C, H, W) to weights (B, K).
        num_experts: K.
        init: With `preserve` the added experts are copies, with `scratch` drawn anew.
    """

    def __init__(
        self, conv: nn.Conv2d, mixture: nn.Module, *, num_experts: int, init: ExpertInit
    ) -> None:
        super().__init__()
        self.mixture = mixture
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups = conv.groups
        drawn = [_expert(conv, init) for _ in range(num_experts - 1)]
        self.weights = nn.Parameter(torch.stack([weight for weight, _ in drawn]))
        biases = [bias for _, bias in drawn if bias is not None]
        self.biases = nn.Parameter(torch.stack(biases)) if biases else None

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve x (B, C, H, W) with the backbone's weight and bias among the experts."""
        num_images = len(x)
        mixture_BK = self.mixture(x).to(weight.dtype)
        experts_KW = torch.cat([weight[None], self.weights]).flatten(1)
        mixed = (mixture_BK @ experts_KW).reshape(num_images * len(weight), *weight.shape[1:])
        y: Tensor = functional.conv2d(
            x.reshape(1, -1, *x.shape[2:]),
            mixed,
            None,
            self.stride,
            self.padding,
            self.dilation,
            num_images * self.groups,
        )
        y = y.reshape(num_images, len(weight), *y.shape[2:])
        if bias is None or self.biases is None:
            return y
        bias_BO = mixture_BK @ torch.cat([bias[None], self.biases])
        y = y + bias_BO[:, :, None, None]
        return y


def mixed_network(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None,
    *,
    method: str,
    count: tuple[str, int],
    num_blocks: int,
    init: ExpertInit,
    make: Callable[[nn.Conv2d], nn.Module],
    reason: str,
    kind: type[BaselineNetwork] = BaselineNetwork,
) -> BaselineNetwork:
    """Replace each plain convolution in the last `num_blocks` blocks by a mixture of experts.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        method: Its name.
        count: What the method calls its experts, and how many each convolution has.
        num_blocks: 0 for all blocks.
        init: How added experts start.
        make: Maps a convolution to the module that decides its mixture.
        reason: Why experts that start as copies give the backbone.
        kind: The class of the network.

    Raises:
        InputError: An option or the model is not valid, or the model has no convolutions.
    """
    name, num_experts = count
    at_least(name, num_experts, 2)
    at_least("num_blocks", num_blocks, 0)
    one_of("init", init, ("preserve", "scratch"))
    draft = open_draft(model, example_input, method=method)
    blocks = [block for block, _ in draft.blocks()]
    first = max(0, len(blocks) - num_blocks) if num_blocks else 0
    draft.unchanged += [
        (block.path, f"not among the last {num_blocks} blocks") for block in blocks[:first]
    ]
    for block in blocks[first:]:
        _mix_block_(draft, block, make, num_experts=num_experts, init=init)
    is_copied = init == "preserve"
    return finish(
        draft,
        method=method,
        options={name: num_experts, "num_blocks": num_blocks, "init": init},
        exactness="up to rounding" if is_copied else "no",
        reason=reason if is_copied else f"{name} are drawn anew",
        kind=kind,
    )


def _mix_block_(
    draft: Draft,
    block: Region,
    make: Callable[[nn.Conv2d], nn.Module],
    *,
    num_experts: int,
    init: ExpertInit,
) -> None:
    for name in block.fx_nodes:
        call = draft.by_name[name]
        if call.op != "call_module":
            continue
        path = str(call.target)
        conv = draft.backbone.get_submodule(path)
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            if any(parameter.ndim == 4 for parameter in conv.parameters(recurse=False)):
                draft.unchanged.append((path, f"a {type(conv).__name__} is not a plain nn.Conv2d"))
            continue
        mixed = MixedConv(conv, make(conv), num_experts=num_experts, init=init)
        names = ["weight"] if conv.bias is None else ["weight", "bias"]
        with draft.graph.inserting_before(call):
            own = [
                draft.graph.create_node("get_attr", f"{path}.{one}", name=f"dg_{one}")
                for one in names
            ]
            replaced = draft.call(path, mixed, (*call.all_input_nodes, *own))
        call.replace_all_uses_with(replaced)
        draft.graph.erase_node(call)
        draft.by_name[name] = replaced
        draft.changed.append(path)


@torch.no_grad()
def _expert(conv: nn.Conv2d, init: ExpertInit) -> tuple[Tensor, Tensor | None]:
    """Return the weight and the bias of an added expert."""
    if init == "preserve":
        return conv.weight.clone(), None if conv.bias is None else conv.bias.clone()
    twin = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    return twin.weight.to(conv.weight), None if twin.bias is None else twin.bias.to(conv.weight)
