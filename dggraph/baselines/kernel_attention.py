"""Dynamic convolution (arXiv 1912.03458): attention over kernels, annealed from near-uniform.

Shape suffixes: B images, C channels, K kernels.
"""

import torch
from torch import Tensor, nn

from dggraph.baselines.expert_mixing import ExpertInit, mixed_network
from dggraph.baselines.network import BaselineNetwork
from dggraph.models.registry import LoadedModel
from dggraph.ops.pooling import pool

START_TEMPERATURE = 30.0
"""The temperature of the softmax at the start of training; it ends at 1."""
ANNEALED_SHARE = 0.1
"""Share of training over which the temperature falls, linearly."""
REDUCTION = 4


class KernelAttention(nn.Module):
    """softmax((W2 relu(W1 mean(x))) / temperature), one weight per image and kernel."""

    temperature: Tensor

    def __init__(self, num_channels: int, num_kernels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(num_channels, max(1, num_channels // REDUCTION), bias=False)
        self.expand = nn.Linear(self.reduce.out_features, num_kernels)
        self.register_buffer("temperature", torch.tensor(START_TEMPERATURE))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to weights (B, K), which add up to 1."""
        logits_BK = self.expand(self.reduce(pool(features, (2, 3), features.dtype)).relu())
        weights_BK: Tensor = (logits_BK / self.temperature.to(logits_BK.dtype)).softmax(1)
        return weights_BK


class DynamicConvNetwork(BaselineNetwork):
    """The network of `dynamic_conv`."""

    def anneal_(self, done: float) -> None:
        """Let the temperature fall from 30 to 1 over the first tenth of training. In place."""
        left = max(0.0, 1.0 - done / ANNEALED_SHARE)
        for module in self.modules():
            if isinstance(module, KernelAttention):
                module.temperature.fill_(1.0 + left * (START_TEMPERATURE - 1.0))


def dynamic_conv(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    kernels: int = 4,
    num_blocks: int = 0,
    init: ExpertInit = "preserve",
) -> BaselineNetwork:
    """Mix the weights of each convolution per image by attention over kernels (arXiv 1912.03458).

    The attention is Squeeze-and-Excitation's with a softmax over kernels. `anneal_` lets its
    temperature fall from 30 to 1 over the first tenth of training, without which the paper found no
    gain; `dggraph train` calls it. A batch of B images holds B times the weights of a layer in
    memory.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        kernels: Kernels of each convolution, the backbone's weights included.
        num_blocks: Only the last blocks are changed; 0 for all.
        init: With `preserve` kernels start as copies, so the network starts as the backbone, up to
            the rounding of the sums. With `scratch`, for training from nothing, they are drawn as
            torch draws a convolution, and the network starts as another function.

    Raises:
        InputError: An option or the model is not valid, or the model has no convolutions.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.baselines.dynamic_conv("dggraph:resnet20_8", kernels=2)
        >>> net.anneal_(0.05)
        >>> float(net.get_submodule("dg_method.layer1_0_conv1").mixture.temperature)
        15.5
    """
    return mixed_network(
        model,
        example_input,
        method="dynamic_conv",
        count=("kernels", kernels),
        num_blocks=num_blocks,
        init=init,
        make=lambda conv: KernelAttention(conv.in_channels, kernels),
        reason="kernels start as copies, and a softmax adds up to 1",
        kind=DynamicConvNetwork,
    )
