"""Routers: features to logits, one per candidate edge.

A `node` router reads the output of one node and fills its adjacency row as the forward pass reaches
it, the paper's "updated in the forward pass". A `stage` router reads the entry of a stage and fills
the complete matrix. Both apply global average pooling and one linear layer, or two with a hidden
width (`node(16)`), in at least float32 and outside autocast. The form of the router is our choice,
not the paper's. `tied` and `constant` are controls: one gate a source, and edges that are learned
but equal for all images. `content` is in a file of its own.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.ops.content_router import ContentRouter
from dggraph.ops.pooling import deviation, mean_channels, normalised
from dggraph.system.devices import outside_autocast
from dggraph.system.specs import bind, read_known


class LinearRouter(nn.Module):
    """Global average pooling followed by a linear layer, or by two with a hidden width.

    The last layer is zero-initialised, so that an anchored gate starts as the backbone.

    Args:
        num_channels: channels of the input features.
        num_edges: number of logits.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
        hidden: width of a hidden layer with ReLU; 0 for none. Its weights get a gradient from the
            second step on, since the last layer starts at zero.
        inputs: the mean of each channel, or its mean and its standard deviation.
        norm: `rms` divides what the layers read by its root mean square.
        gradient: `stop` keeps the router's gradient from the features.
    """

    def __init__(
        self,
        num_channels: int,
        num_edges: int,
        channel_axis: int,
        hidden: int = 0,
        *,
        inputs: Literal["pool", "pool+std"] = "pool",
        norm: Literal["none", "rms"] = "none",
        gradient: Literal["pass", "stop"] = "pass",
    ) -> None:
        """Build the layers in float32."""
        super().__init__()
        self.channel_axis = channel_axis
        self.inputs, self.norm, self.gradient = inputs, norm, gradient
        width = num_channels * (2 if inputs == "pool+std" else 1)
        self.hidden = nn.Linear(width, hidden, dtype=torch.float32) if hidden else None
        self.weight = nn.Parameter(torch.zeros(num_edges, hidden or width, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(num_edges, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to logits (B, E), float32 or wider."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        with outside_autocast(features.device.type):
            read_BC = self._read(features, dtype)
            if self.hidden is not None:
                read_BC = nn.functional.linear(
                    read_BC, self.hidden.weight.to(dtype), self.hidden.bias.to(dtype)
                ).relu()
            return nn.functional.linear(read_BC, self.weight.to(dtype), self.bias.to(dtype))

    def _read(self, features: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what the layers read of `features`, (B, C), or (B, 2C) with deviations."""
        if self.gradient == "stop":
            features = features.detach()
        read_BC = mean_channels(features, self.channel_axis, dtype)
        if self.inputs == "pool+std":
            read_BC = torch.cat([read_BC, deviation(features, self.channel_axis, dtype)], dim=1)
        return normalised(read_BC) if self.norm == "rms" else read_BC


class TiedRouter(nn.Module):
    """A linear router with one logit for all outgoing edges of a node, or one for each part.

    It is a control: it weighs sources, as plain gating does, and does not choose among edges.

    Args:
        num_channels: channels of the input features.
        num_edges: number of equal logits.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
        hidden: as for `LinearRouter`, as are the others.
        inputs: see there.
        norm: see there.
        gradient: see there.
        num_parts: logits of an edge that are decided apart, where edges have several weights.
    """

    def __init__(
        self,
        num_channels: int,
        num_edges: int,
        channel_axis: int,
        hidden: int = 0,
        *,
        inputs: Literal["pool", "pool+std"] = "pool",
        norm: Literal["none", "rms"] = "none",
        gradient: Literal["pass", "stop"] = "pass",
        num_parts: int = 1,
    ) -> None:
        """Build the layers in float32."""
        super().__init__()
        self.num_edges = num_edges // num_parts
        self.one = LinearRouter(
            num_channels,
            num_parts,
            channel_axis,
            hidden,
            inputs=inputs,
            norm=norm,
            gradient=gradient,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, ...) to equal logits (B, E), float32 or wider."""
        logits_BP: Tensor = self.one(features)
        return logits_BP.repeat(1, self.num_edges)


class ConstantRouter(nn.Module):
    """Learned logits that are the same for every image: static edges as a control.

    Args:
        num_channels: not used, since it does not look at features.
        num_edges: number of logits, which start at zero.
        channel_axis: not used.
    """

    def __init__(self, num_channels: int, num_edges: int, channel_axis: int) -> None:
        """Register the logits in float32."""
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_edges, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits for each image of `features` (B, ...), (B, E)."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        return self.bias.to(dtype).expand(len(features), -1)


Router = Callable[[int, int, int], nn.Module]
"""Maps (channels, edges, channel axis) to a module from features to logits (B, edges)."""

Scope = Literal["node", "stage", "column"]

PIXEL_ROUTERS = ("node", "stage", "tied")
"""Routers that can also decide for every position, see `position_router`."""

ROUTERS: dict[str, tuple[Scope, Callable[..., nn.Module]]] = {
    "node": ("node", LinearRouter),
    "stage": ("stage", LinearRouter),
    "tied": ("node", TiedRouter),
    "constant": ("stage", ConstantRouter),
    "content": ("column", ContentRouter),
}
"""For each name, its scope and its factory.

There is one router per `node`, which decides its outgoing edges, or per `stage`. A `column` router
decides the edges into the next node; only `content_router` has that form.
"""


def find_router(text: str) -> tuple[Scope, Router]:
    """Return the scope and the factory of a router such as `node` or `stage(16, norm=rms)`.

    What is in brackets are further arguments of the factory.

    Raises:
        InputError: no such router, or arguments that it does not take.
    """
    spec = read_known("router", text, ROUTERS, example="Write for example node, stage or node(16).")
    scope, make = ROUTERS[spec.name]
    bound = bind(spec, make, num_taken=3)
    whole = [
        *spec.numbers,
        *(value for value in spec.options.values() if type(value) is int),
    ]
    if not all(type(number) is int and number >= 0 for number in whole):
        raise InputError(f"router={text!r}: arguments must be whole numbers, from 0 on.")
    return scope, bound


def register_router(name: str, make: Router, *, scope: Literal["node", "stage"] = "node") -> None:
    """Register a router, to be selected with `router=name`.

    Args:
        name: a name that is not registered yet.
        make: called with (channels, edges, channel axis), then with the arguments in brackets;
            returns a module from features (B, ...) to logits (B, edges).
        scope: `node` for one router per node, which decides its outgoing edges; `stage` for one
            router at the stage's entry, which decides all edges.

    Raises:
        InputError: the name is already registered.

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
        raise InputError(f"a router named {name!r} is already registered; choose another name.")
    ROUTERS[name] = (scope, make)
