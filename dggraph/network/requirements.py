"""What functions on converted networks ask of the network that they are given."""

from torch import nn

from dggraph.errors import InputError


def require_converted(net: object, caller: str) -> None:
    """Raise InputError if `net` was not made by `convert`; a wrapper that acts as one is fine.

    Args:
        net: What the caller was given.
        caller: The name of the function.
    """
    if hasattr(net, "blueprint"):
        return
    if isinstance(getattr(net, "module", None), nn.Module):
        way_out = "Give the network inside: net.module."
    elif hasattr(net, "method"):
        way_out = "A network of dggraph.baselines has no graph and no paths."
    else:
        way_out = "Call dggraph.convert first."
    raise InputError(f"{caller} takes a converted network, not {type(net).__name__}. {way_out}")
