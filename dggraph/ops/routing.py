"""Routers: features to logits, one a candidate edge.

`node` routers look at one node's output and fill its adjacency row as the pass reaches it, the
paper's "updated in the forward pass". A `stage` router looks at the stage's entry and fills the
whole matrix. Both pool, then apply one linear layer, or with a hidden width (`node(16)`) two, in at
least float32 and outside autocast. Router form is our choice, not the paper's.
"""

import difflib
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from dggraph.errors import InputError


class LinearRouter(nn.Module):
    """Global average pool, then linear. Zero-initialised: an anchored gate then starts as the
    backbone.

    Args:
        num_channels: channels of the features it sees.
        num_edges: logits to give.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
        num_hidden: width of a hidden layer with ReLU; 0 for none. Its own weights get a gradient
            from the second step on, since the last layer starts at zero.
    """

    def __init__(
        self, num_channels: int, num_edges: int, channel_axis: int, num_hidden: int = 0
    ) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.hidden = (
            nn.Linear(num_channels, num_hidden, dtype=torch.float32) if num_hidden else None
        )
        self.weight = nn.Parameter(
            torch.zeros(num_edges, num_hidden or num_channels, dtype=torch.float32)
        )
        self.bias = nn.Parameter(torch.zeros(num_edges, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, E), float32 or wider."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        device = features.device.type
        with (
            torch.autocast(device, enabled=False)
            if torch.amp.is_autocast_available(device)
            else nullcontext()
        ):
            axes = [
                axis
                for axis in range(1, features.ndim)
                if axis != self.channel_axis % features.ndim
            ]
            pooled_BC = features.mean(dim=axes, dtype=dtype) if axes else features.to(dtype)
            if self.hidden is not None:
                pooled_BC = nn.functional.linear(
                    pooled_BC, self.hidden.weight.to(dtype), self.hidden.bias.to(dtype)
                ).relu()
            return nn.functional.linear(pooled_BC, self.weight.to(dtype), self.bias.to(dtype))


Router = Callable[[int, int, int], nn.Module]
"""(channels, edges, channel axis) to a module from features to logits (B, edges)."""

Scope = Literal["node", "stage"]

ROUTERS: dict[str, tuple[Scope, Callable[..., nn.Module]]] = {
    "node": ("node", LinearRouter),
    "stage": ("stage", LinearRouter),
}
"""Per name: whether one router serves each `node` or the whole `stage`, and its factory."""


def find_router(text: str) -> tuple[Scope, Router]:
    """`node`, `stage`, `node(16)` or a registered name, numbers in brackets being further arguments
    of its factory.

    Raises:
        InputError: no such router, or arguments that are not integers.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(([\d\s,]*)\))?\s*", text)
    name = match.group(1) if match else text
    if match is None or name not in ROUTERS:
        close = difflib.get_close_matches(name, ROUTERS, n=1)
        hint = (
            f" Did you mean {close[0]!r}?"
            if close
            else " Write for example node, stage or node(16)."
        )
        raise InputError(f"router={text!r} is not one of {', '.join(ROUTERS)}.{hint}")
    scope, make = ROUTERS[name]
    numbers = [int(part) for part in (match.group(2) or "").split(",") if part.strip()]
    return scope, lambda channels, edges, axis: make(channels, edges, axis, *numbers)


def register_router(name: str, make: Router, *, scope: Scope = "node") -> None:
    """Make `name` usable as `router=`.

    Args:
        name: not taken.
        make: takes (channels, edges, channel axis), returns a module from features (B, ...) to
            logits (B, edges).
        scope: `node`: one router per node, deciding its outgoing edges; `stage`: one at the stage's
            entry, deciding all.

    Raises:
        InputError: the name is taken.

    Example:
        >>> import dggraph, torch
        >>> class MaxRouter(torch.nn.Module):
        ...     def __init__(self, channels, num_edges, channel_axis):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(channels, num_edges)
        ...         torch.nn.init.zeros_(self.linear.weight)
        ...         torch.nn.init.zeros_(self.linear.bias)
        ...     def forward(self, features):
        ...         return self.linear(features.amax((2, 3)))
        >>> dggraph.register_router("max", MaxRouter)
        >>> dggraph.convert("dggraph:resnet20_8", router="max").blueprint.router
        'max'
    """
    if name in ROUTERS:
        raise InputError(f"there is a router {name!r} already; choose another name.")
    ROUTERS[name] = (scope, make)
