"""CondConv (arXiv 1904.04971): the experts of a convolution, weighed by sigmoids per image.

Shape suffixes: B images, C channels, K experts.
"""

import torch
from torch import Tensor, nn

from dggraph.baselines.expert_mixing import ExpertInit, mixed_network
from dggraph.baselines.network import BaselineNetwork
from dggraph.models.registry import LoadedModel
from dggraph.ops.pooling import pool


class SigmoidMixture(nn.Module):
    """(2 / K) sigmoid(W mean(x) + b), one weight per image and expert.

    The factor only rescales the experts, so that weights of one half each add up to 1. Rows of W
    come in pairs of opposite sign: the weights of an image start different, so that the experts
    part, and still add up to 1.
    """

    def __init__(self, num_channels: int, num_experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_channels, num_experts)
        with torch.no_grad():
            nn.init.zeros_(self.linear.bias)
            half = num_experts // 2
            self.linear.weight[half : 2 * half] = -self.linear.weight[:half]
            self.linear.weight[2 * half :] = 0

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to weights (B, K)."""
        logits_BK = self.linear(pool(features, (2, 3), features.dtype))
        weights_BK: Tensor = logits_BK.sigmoid() * (2 / logits_BK.shape[1])
        return weights_BK


def cond_conv(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    experts: int = 8,
    num_blocks: int = 3,
    init: ExpertInit = "preserve",
) -> BaselineNetwork:
    """Mix the weights of each convolution per image from experts (CondConv, arXiv 1904.04971).

    The router is a linear layer on pooled features, followed by a sigmoid for each expert. The
    convolutions of the last blocks are replaced, since late layers gain most in the paper. A batch
    of B images holds B times the weights of a layer in memory.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        experts: Experts of each convolution, the backbone's weights included.
        num_blocks: Only the last blocks are changed; 0 for all.
        init: With `preserve` experts start as copies, so the network starts as the backbone, up to
            the rounding of the sums. With `scratch`, for training from nothing, they are drawn as
            torch draws a convolution, and the network starts as another function.

    Raises:
        InputError: An option or the model is not valid, or the model has no convolutions.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.baselines.cond_conv("dggraph:resnet20_8", experts=4)
        >>> net.get_submodule("dg_method.layer3_2_conv2").weights.shape
        torch.Size([3, 32, 32, 3, 3])
    """
    return mixed_network(
        model,
        example_input,
        method="cond_conv",
        count=("experts", experts),
        num_blocks=num_blocks,
        init=init,
        make=lambda conv: SigmoidMixture(conv.in_channels, experts),
        reason="experts start as copies, and their weights add up to 1",
    )
