"""Squeeze-and-Excitation (arXiv 1709.01507): each channel of a branch is scaled per image.

Shape suffixes: B images, C channels.
"""

from torch import Tensor, nn

from dggraph.baselines.draft import finish, open_draft
from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.options import at_least
from dggraph.models.registry import LoadedModel
from dggraph.ops.pooling import pool


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), one factor per image and channel."""

    def __init__(self, num_channels: int, num_hidden: int, channel_axis: int) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.reduce = nn.Linear(num_channels, num_hidden)
        self.expand = nn.Linear(num_hidden, num_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Scale features (B, ..., C, ...) to the same shape."""
        channel_axis = self.channel_axis % features.ndim
        axes = [axis for axis in range(1, features.ndim) if axis != channel_axis]
        pooled_BC = pool(features, axes, features.dtype)
        factors_BC: Tensor = self.expand(self.reduce(pooled_BC).relu()).sigmoid()
        shape = [1] * features.ndim
        shape[0], shape[channel_axis] = factors_BC.shape
        return features * factors_BC.reshape(shape)


def squeeze_excitation(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    reduction: int = 16,
) -> BaselineNetwork:
    """Put Squeeze-and-Excitation at the end of the branch of each block (arXiv 1709.01507).

    A block without a shortcut gets it at its end. The network does not start as the backbone: a
    new gate scales each channel by about one half.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        reduction: The hidden width is the number of channels over this, and at least 1.

    Raises:
        InputError: `reduction` is not a whole number of at least 1, or the model is not valid.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.baselines.squeeze_excitation("dggraph:resnet20_8", reduction=4)
        >>> sorted(key for key in net.state_dict() if "layer1_0" in key)[0]
        'dg_method.layer1_0.expand.bias'
    """
    at_least("reduction", reduction, 1)
    draft = open_draft(model, example_input, method="squeeze_excitation")
    widths = []
    for branch in draft.branches():
        num_hidden = max(1, branch.num_channels // reduction)
        widths.append(num_hidden)
        draft.change_end(
            branch, SqueezeExcitation(branch.num_channels, num_hidden, branch.channel_axis)
        )
    reason = "each branch starts scaled by a sigmoid of about one half"
    if num_single := widths.count(1):
        reason += (
            f"; {num_single} of {len(widths)} have a single hidden unit, which may be dead from the"
            " start: a smaller reduction gives more"
        )
    return finish(
        draft,
        method="squeeze_excitation",
        options={"reduction": reduction},
        exactness="no",
        reason=reason,
    )
