"""Routers that decide the edges into a node by content: a query meets the keys of its sources.

The newest feature in front of a node asks, and each source answers with its key, as in attention
over depth. The router of vertex i therefore gives a query and a bias for the edges into vertex
i + 1, and a key for all edges that leave vertex i.

Shape suffixes: B instances, E edges into one node, D width of queries and keys.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from dggraph.errors import InputError
from dggraph.ops.pooling import mean_channels, normalised
from dggraph.system.devices import outside_autocast


class ContentRouter(nn.Module):
    """Queries, keys and biases from pooled features; queries and biases start at zero.

    Keys are divided by their root mean square, as in Attention Residuals (arXiv 2603.15031). They
    get a gradient from the second step on.

    Args:
        num_channels: channels of the features.
        num_edges: edges into the next vertex.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
        width: of queries and keys.

    Raises:
        InputError: the width is less than 1.
    """

    def __init__(
        self, num_channels: int, num_edges: int, channel_axis: int, width: int = 16
    ) -> None:
        """Build the layers in float32."""
        super().__init__()
        if width < 1:
            raise InputError(
                f"content({width}): queries and keys of no width choose nothing. Use content, or a"
                " width of at least 1."
            )
        self.channel_axis, self.width, self.num_edges = channel_axis, width, num_edges
        self.query = nn.Parameter(torch.zeros(width, num_channels, dtype=torch.float32))
        self.key = nn.Linear(num_channels, width, bias=False, dtype=torch.float32)
        self.bias = nn.Parameter(torch.zeros(num_edges, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to a query, a key and biases, (B, 2 D + E), float32 or wider."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        with outside_autocast(features.device.type):
            pooled_BC = mean_channels(features, self.channel_axis, dtype)
            key_BD = normalised(linear(pooled_BC, self.key.weight.to(dtype)))
            bias_BE = self.bias.to(dtype).expand(len(features), -1)
            return torch.cat([linear(pooled_BC, self.query.to(dtype)), key_BD, bias_BE], 1)


def of_live(read_BN: Tensor, live_B: Tensor | None) -> Tensor:
    """Return what a vertex gave, and zeros for instances that it is dead for; None: for none."""
    return read_BN if live_B is None else torch.where(live_B[:, None], read_BN, 0.0)


def content_logits(reads: Sequence[Tensor], newest: Tensor, width: int) -> Tensor:
    """Return logits (B, E) of the edges into a node: query . key / sqrt(D) + bias.

    Args:
        reads: what the routers of its E sources gave, (B, 2 D + E).
        newest: what the router of the vertex before the node gave.
        width: D.
    """
    query_BD, bias_BE = newest[:, :width], newest[:, 2 * width :]
    keys_BED = torch.stack([read[:, width : 2 * width] for read in reads], 1)
    logits_BE: Tensor = (keys_BED * query_BD[:, None]).sum(2) / width**0.5 + bias_BE
    return logits_BE
