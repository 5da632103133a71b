"""A router that decides for every position of a feature map, or for every token."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from dggraph.ops.pooling import inverse_rms
from dggraph.system.devices import outside_autocast

HIDDEN_SHARE = 16
"""Channels for each hidden unit."""


class PositionRouter(nn.Module):
    """Logits for every position: W2 gelu(W1 rmsnorm(x)), as in MUDDFormer (arXiv 2502.12170).

    W2 is zero-initialised, so that an anchored gate starts as the backbone. W1 therefore gets a
    gradient from the second step on.

    Args:
        num_channels: channels of the input features.
        num_edges: number of logits for each position.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
    """

    def __init__(self, num_channels: int, num_edges: int, channel_axis: int) -> None:
        """Build the layers in float32."""
        super().__init__()
        self.channel_axis = channel_axis
        num_hidden = max(num_channels // HIDDEN_SHARE, 4)
        self.hidden = nn.Linear(num_channels, num_hidden, dtype=torch.float32)
        self.weight = nn.Parameter(torch.zeros(num_edges, num_hidden, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(num_edges, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to logits (B, *positions, E)."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        with outside_autocast(features.device.type):
            last = features.to(dtype).movedim(self.channel_axis, -1)
            # The scale comes after the first layer, since both are linear: it has fewer channels.
            hidden = functional.linear(last, self.hidden.weight.to(dtype)) * inverse_rms(last, -1)
            hidden = functional.gelu(hidden + self.hidden.bias.to(dtype))
            return functional.linear(hidden, self.weight.to(dtype), self.bias.to(dtype))


class TiedPositionRouter(nn.Module):
    """A `PositionRouter` with one logit for all edges, as a control; see `routing.TiedRouter`.

    Args:
        num_channels: channels of the input features.
        num_edges: number of equal logits for each position.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
    """

    def __init__(self, num_channels: int, num_edges: int, channel_axis: int) -> None:
        """Build the layers in float32."""
        super().__init__()
        self.num_edges = num_edges
        self.one = PositionRouter(num_channels, 1, channel_axis)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to logits (B, *positions, E)."""
        logits: Tensor = self.one(features)
        return logits.repeat(*[1] * (logits.ndim - 1), self.num_edges)
