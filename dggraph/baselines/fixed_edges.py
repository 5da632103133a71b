"""Static edges: the control that has our wiring, but the same edge weights for every image."""

from torch import Tensor, nn

from dggraph.models.registry import LoadedModel
from dggraph.network.conversion import convert
from dggraph.network.network import DynamicNetwork


def static_edges(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    wiring: str = "complete",
    gate: str = "anchored",
) -> DynamicNetwork:
    """Learn edges that are the same for every image, A = A0 + b.

    It is `convert` with `router="constant"`, at a threshold of 0: no edge is closed but those at or
    below 0. The result is a converted network, whose archives, pictures and measurements are those
    of any other. It starts as the backbone, bitwise.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        wiring: The name of a wiring.
        gate: The name of a gate.

    Raises:
        InputError: An option is not valid, or the model is not.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: No block has a candidate edge around it.
        WiringError: The wiring names an impossible edge.

    Example:
        >>> import dggraph
        >>> net = dggraph.baselines.static_edges("dggraph:resnet20_8")
        >>> net.blueprint.router
        'constant'
    """
    return convert(model, example_input, wiring=wiring, router="constant", gate=gate, threshold=0.0)
