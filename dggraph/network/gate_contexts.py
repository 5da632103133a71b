"""Context managers around forward passes: pinned gates, collected gates, own thresholds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dggraph.compiler.lowered import routing_of
from dggraph.network.gates import Gates, static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.ops.additive import Gain


def decided_edges(net: DynamicNetwork, stage: str) -> dict[int, list[int]]:
    """Return, for each vertex of `stage` with a router, the positions of the edges it decides.

    Positions are in the edge order of the stage. A `stage` router is at vertex 0 and decides all
    edges.
    """
    topology, (plan,) = (
        net.macs_table.stages[stage].topology,
        (one for one in net.plan if one.name == stage),
    )
    if plan.scope == "stage":
        return {0: list(range(len(topology.sources)))}
    if plan.scope == "column":
        return topology.decided_by_column()
    return dict(enumerate(topology.outgoing()[:-1]))


@contextmanager
def collecting_gates(net: DynamicNetwork) -> Iterator[list[Gates]]:
    """Collect the `Gates` of each forward pass within this context.

    It serves a network inside another module, whose call returns something else.

    Yields:
        The list that each pass appends its `Gates` to.

    Example:
        >>> import dggraph, torch
        >>> from torchvision.models.detection import ssdlite320_mobilenet_v3_large
        >>> detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
        >>> net = dggraph.convert_backbone_(detector)
        >>> with dggraph.detection.collecting_gates(net) as gates:
        ...     found = detector([torch.rand(3, 64, 64)])
        >>> len(gates)
        1
    """
    before, collected = net._collected, list[Gates]()
    net._collected = collected
    try:
        yield collected
    finally:
        net._collected = before


@contextmanager
def own_thresholds(net: DynamicNetwork) -> Iterator[None]:
    """Restore the thresholds of `net` at the end of this context."""
    before = {stage: routing_of(net.lowered, stage).threshold.clone() for stage in net.graph.stages}
    try:
        yield
    finally:
        for stage, threshold in before.items():
            routing_of(net.lowered, stage).threshold.copy_(threshold)


@contextmanager
def pinned_gates(net: DynamicNetwork, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace the gate outputs of the named stages, within this context.

    `weights` has (E,) or (B, E) per stage. Gates see the whole batch under every executor, so each
    row of `weights` belongs to one image. Edges with several weights get this one, or all of theirs
    from (B, E, ...).
    """
    handles = []
    try:
        for stage, pinned in weights.items():
            routing = routing_of(net.lowered, stage)
            for index, places in decided_edges(net, stage).items():
                taken = pinned[places] if pinned.ndim == 1 else pinned[:, places]

                def hook(
                    _module: nn.Module,
                    _args: Any,
                    row_BE: Tensor,
                    values: Tensor = taken,
                ) -> Tensor:
                    return values.to(row_BE).expand(*row_BE.shape[:2], *values.shape[2:])

                handles.append(routing.gate(index).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def static_path(net: DynamicNetwork) -> Iterator[None]:
    """Give every image the backbone's own weights and sums, within this context."""
    gains = [module.gain for module in net.lowered.modules() if isinstance(module, Gain)]
    before = [gain.detach().clone() for gain in gains]
    for gain in gains:
        gain.detach().zero_()
    try:
        with pinned_gates(net, static_weights(net.graph)):
            yield
    finally:
        for gain, value in zip(gains, before, strict=True):
            gain.detach().copy_(value)
