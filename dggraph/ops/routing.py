"""Routers: features to logits, one per candidate edge.

A `node` router reads the output of one node and fills its adjacency row as the forward pass reaches
it, the paper's "updated in the forward pass". A `stage` router reads the entry of a stage and fills
the complete matrix. Both apply global average pooling and one linear layer, or two with a hidden
width (`node(16)`), in at least float32 and outside autocast. The form of the router is our choice,
not the paper's.
"""

import difflib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dggraph.errors import InputError
from dggraph.ops.aggregation import is_plain
from dggraph.system.specs import read_spec, refuse_numbers


def pool(features: Tensor, axes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the mean of `features` over `axes`, in `dtype`.

    In eager mode the gradient is an expanded view of a small tensor, while that of `Tensor.mean`
    would be as large as the features.
    """
    if is_plain() or not (torch.is_grad_enabled() and features.requires_grad):
        return features.mean(dim=list(axes), dtype=dtype)
    return _Pool.apply(features, tuple(axes), dtype)  # type: ignore[no-any-return]


class _Pool(torch.autograd.Function):
    # `forward` takes the context: with `setup_context`, each call inspects the signature (85 us).
    @staticmethod
    def forward(ctx: Any, features: Tensor, axes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        ctx.axes, ctx.shape, ctx.dtype = axes, features.shape, features.dtype
        return features.mean(dim=axes, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        kept = [1 if axis in ctx.axes else size for axis, size in enumerate(ctx.shape)]
        num_pooled = prod(ctx.shape[axis] for axis in ctx.axes)
        return (grad / num_pooled).to(ctx.dtype).reshape(kept).expand(ctx.shape), None, None


class LinearRouter(nn.Module):
    """Global average pooling followed by a linear layer, or by two with a hidden width.

    The last layer is zero-initialised, so that an anchored gate starts as the backbone.

    Args:
        num_channels: channels of the input features.
        num_edges: number of logits.
        channel_axis: 1 for NCHW, -1 for NHWC and tokens.
        num_hidden: width of a hidden layer with ReLU; 0 for none. Its weights get a gradient from
            the second step on, since the last layer starts at zero.
    """

    def __init__(
        self, num_channels: int, num_edges: int, channel_axis: int, num_hidden: int = 0
    ) -> None:
        """Build the layers in float32."""
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
        """Map features (B, ...) to logits (B, E), float32 or wider."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        device = features.device.type
        with (
            torch.autocast(device, enabled=False)
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
            else nullcontext()
        ):
            axes = [
                axis
                for axis in range(1, features.ndim)
                if axis != self.channel_axis % features.ndim
            ]
            pooled_BC = pool(features, axes, dtype) if axes else features.to(dtype)
            if self.hidden is not None:
                pooled_BC = nn.functional.linear(
                    pooled_BC, self.hidden.weight.to(dtype), self.hidden.bias.to(dtype)
                ).relu()
            return nn.functional.linear(pooled_BC, self.weight.to(dtype), self.bias.to(dtype))


Router = Callable[[int, int, int], nn.Module]
"""Maps (channels, edges, channel axis) to a module from features to logits (B, edges)."""

Scope = Literal["node", "stage"]

ROUTERS: dict[str, tuple[Scope, Callable[..., nn.Module]]] = {
    "node": ("node", LinearRouter),
    "stage": ("stage", LinearRouter),
}
"""For each name, its scope (one router per `node` or per `stage`) and its factory."""


def find_router(text: str) -> tuple[Scope, Router]:
    """Return the scope and the factory of a router such as `node`, `stage` or `node(16)`.

    Numbers in brackets are further arguments of the factory.

    Raises:
        InputError: no such router, or numbers that it does not take.
    """
    example = "Write for example node, stage or node(16)."
    try:
        spec = read_spec(text)
    except InputError as error:
        raise InputError(f"router: {error} {example}") from error
    if spec.name not in ROUTERS:
        close = difflib.get_close_matches(spec.name, ROUTERS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else example
        raise InputError(f"router={text!r} is not one of {', '.join(ROUTERS)}. {hint}")
    scope, make = ROUTERS[spec.name]
    refuse_numbers(spec, make, num_taken=3)
    if not all(type(number) is int and number >= 0 for number in spec.numbers):
        raise InputError(f"router={text!r}: arguments must be whole numbers, from 0 on.")
    return scope, lambda channels, edges, axis: make(channels, edges, axis, *spec.numbers)


def register_router(name: str, make: Router, *, scope: Scope = "node") -> None:
    """Register a router, to be selected with `router=name`.

    Args:
        name: a name that is not registered yet.
        make: called with (channels, edges, channel axis); returns a module from features (B, ...)
            to logits (B, edges).
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
