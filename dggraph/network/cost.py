"""The cost of paths: a table of the network's parts, and a summary of the paths of a set."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dggraph.compiler.edge_writer import stage_topology
from dggraph.compiler.lowered import LoweredModule, routing_of
from dggraph.errors import InputError
from dggraph.graph.ir import DynamicGraph
from dggraph.network.decisions import refuse_nan
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.ops.content_router import ContentRouter
from dggraph.ops.macs import MacsTable, StageMacs
from dggraph.system.devices import first_weight
from dggraph.system.modes import keeping_modes


@dataclass(frozen=True, slots=True, kw_only=True)
class MacsSummary:
    """Multiply-accumulates (MACs) per image over a set; FLOPs are twice as many.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> summary = dggraph.measure_macs(net, [torch.rand(4, 3, 32, 32)])
        >>> summary.num_paths  # with untrained routers every image takes the backbone's path
        1
    """

    num_instances: int
    mean: float
    """Mean MACs of the paths taken."""
    expected: float
    """Mean expected MACs, from which the budget loss takes its gradient.

    Every edge is open with a probability, see `ops/macs`. If it is far from `mean`, training is
    misled.
    """
    kept: float
    """`mean` as a fraction of the static network's MACs; may exceed 1."""
    percentiles: dict[int, float]
    """Percentiles 5, 25, 50, 75 and 95 of the MACs ratio of single images."""
    num_paths: int
    """Number of different paths among the images."""


def tabulate_macs(
    graph: DynamicGraph, lowered: LoweredModule, scope: str, total_macs: int
) -> MacsTable:
    """Return the cost of every part of `graph`.

    Blocks cost what profiling found and routers what they are counted at. An edge costs one MAC per
    element.

    Args:
        graph: The wired graph.
        lowered: The module that owns the routers.
        scope: `node`, `stage` or `column`.
        total_macs: MACs of the backbone for one image.
    """
    stages: dict[str, StageMacs] = {}
    for name in graph.stages:
        nodes, routing = graph.nodes(name), routing_of(lowered, name)
        routers = [
            _router_macs(routing.router(index), node.shape) if scope != "stage" or index == 0 else 0
            for index, node in enumerate(nodes[:-1])
        ]
        blocks = [node.macs if node.kind == "block" else 0 for node in nodes]
        shapes = {node.name: node.shape for node in nodes}
        stages[name] = StageMacs(
            topology=stage_topology(graph, name),
            vertices=tuple(
                block + router for block, router in zip(blocks, [*routers, 0], strict=True)
            ),
            edges=tuple(math.prod(shapes[edge.source]) for edge in graph.edges(name)),
        )
    routed = sum(
        node.macs for name in graph.stages for node in graph.nodes(name) if node.kind == "block"
    )
    return MacsTable(
        fixed=total_macs - routed, static=total_macs, is_useful_only=scope == "stage", stages=stages
    )


def measure_macs(net: DynamicNetwork, batches: Iterable[Any]) -> MacsSummary:
    """Run `net` over a set and summarise the cost of its paths.

    Memory grows by one number per image.

    Args:
        net: A converted network. The modes of its modules are restored.
        batches: Images (B, C, H, W), or tuples that begin with them, as a data loader yields.

    Raises:
        InputError: There are no stages or no images.
        GateError: An edge weight is NaN.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> summary = dggraph.measure_macs(net, [torch.rand(4, 3, 32, 32)])
        >>> summary.num_instances
        4
    """
    require_converted(net, "measure_macs")
    parts: list[Tensor] = []
    expected = 0.0
    paths: set[bytes] = set()
    for gates in iterate_gates(net, batches):
        parts.append(gates.macs().cpu())
        expected += float(gates.expected_macs().sum())
        paths.update(path_keys(gates))
    macs = torch.cat(parts)
    shares = (5, 25, 50, 75, 95)
    percentiles = np.percentile(macs.numpy() / net.macs_table.static, shares)
    return MacsSummary(
        num_instances=len(macs),
        mean=float(macs.mean()),
        expected=expected / len(macs),
        kept=float(macs.mean()) / net.macs_table.static,
        percentiles=dict(zip(shares, percentiles.tolist(), strict=True)),
        num_paths=len(paths),
    )


def iterate_gates(net: DynamicNetwork, batches: Iterable[Any]) -> Iterator[Gates]:
    """Yield the gates of every batch, in eval mode and without gradients.

    The modes of all modules are restored at the end.

    Raises:
        InputError: There are no stages or no images, or a batch does not begin with images.
        GateError: An edge weight is NaN.
    """
    if not net.graph.stages:
        raise InputError("this network has no stages, so there are no paths to measure.")
    device = first_weight(net).device
    num_instances = 0
    with keeping_modes(net):
        net.eval()
        for batch in batches:
            images = batch[0] if isinstance(batch, list | tuple) and batch else batch
            if not isinstance(images, Tensor):
                raise InputError(
                    f"a batch is {type(batch).__name__}; pass images (B, C, H, W), or tuples that"
                    " begin with them."
                )
            with torch.no_grad():
                _, gates = net(images.to(device), return_gates=True)
            for stage, raw_BE in gates.raw.items():
                refuse_nan(net.graph, stage, raw_BE)
            num_instances += len(images)
            yield gates
    if not num_instances:
        raise InputError(
            "there are no images in this set. Pass at least one, as a list or a data loader, not as"
            " an exhausted iterator."
        )


def path_keys(gates: Gates) -> list[bytes]:
    """Return a 16-byte digest of the open edges for each image; equal paths have equal digests."""
    open_BE = (
        torch.cat([weights_BE != 0 for weights_BE in gates.weights.values()], dim=1).cpu().numpy()
    )
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in np.packbits(open_BE, axis=1)]


def entropy_bits(counts: Counter[bytes]) -> float:
    """Return the entropy of the distribution `counts`, in bits.

    It is 0 for one path, and log2(n) for n equally frequent ones.
    """
    shares = np.array(sorted(counts.values()), dtype=np.float64) / counts.total()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def _router_macs(router: nn.Module, shape: tuple[int, ...]) -> int:
    parameter = first_weight(router)
    was_training = router.training
    # Gradients stay on: the counter refuses a view of a parameter that was made without them, which
    # a router that ignores its input returns.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        router.eval()(torch.zeros((1, *shape), dtype=parameter.dtype, device=parameter.device))
    router.train(was_training)
    answers = router.num_edges * router.width if isinstance(router, ContentRouter) else 0
    return int(counter.get_total_flops()) // 2 + answers
