"""The self-check of skipping: executors agree on a batch in which some images skip blocks.

Some stages cannot run on part of a batch, because their blocks use statistics of the batch or mix
its images. They run dense from then on, and the report gives the reason.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dggraph.compiler.profiling import unchanged
from dggraph.errors import DggraphError, LoweringError
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork, Executor
from dggraph.network.outputs import tensors_in
from dggraph.network.static_checks import largest_difference
from dggraph.ops.aggregation import plain_aggregation

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""As a fraction of the largest output.

A block rounds differently on some rows of a batch than on all of them.
"""
MIXES = "its blocks give other values on some images of a batch than on all of them"


def check_skipping_(net: DynamicNetwork, x: Tensor) -> None:
    """Compare the dense executor, the sparse one and the plain expression with some gates closed.

    Stages that cannot skip are marked as dense in `net.plan`.

    Args:
        net: In eval mode.
        x: A batch of several images, (B, C, H, W).

    Raises:
        LoweringError: The dense executor differs from the plain expression; or the sparse one
            differs although every stage is dense.
    """
    if not net.graph.stages:
        return
    weights = _some_skipped(net, len(x))
    dense = _run(net, x, weights, "dense")
    if _plain_agrees(net, x, weights, dense) and _sparse_agrees(net, x, weights, dense):
        return
    is_wide = (
        x.dtype == torch.float32
    )  # random weights of a deep network magnify rounding errors, so compare again in float64
    looked = copy.deepcopy(net).double() if is_wide else net
    for stage in _mark_mixed_(looked, x.double() if is_wide else x, weights):
        mark_dense_(net, stage, MIXES)


def _mark_mixed_(net: DynamicNetwork, x: Tensor, weights: Mapping[str, Tensor]) -> list[str]:
    """Mark as dense the stages that give other values on some rows, and return their names."""
    dense = _run(net, x, weights, "dense")
    with plain_aggregation():
        _refuse(net, dense, _run(net, x, weights, "dense"), "the plain expression")
    if _sparse_agrees(net, x, weights, dense):
        return []
    static = {
        stage: static_E.expand(len(x), -1) for stage, static_E in static_weights(net.graph).items()
    }
    alone = {stage: static | {stage: weights[stage]} for stage in weights}
    mixed = [
        stage
        for stage, one in alone.items()
        if not _sparse_agrees(net, x, one, _run(net, x, one, "dense"))
    ] or list(weights)
    for stage in mixed:
        mark_dense_(net, stage, MIXES)
    _refuse(net, dense, _run(net, x, weights, "sparse"), "the sparse executor")
    return mixed


def mark_dense_(net: DynamicNetwork, stage: str, reason: str) -> None:
    """Make every block of `stage` run on full batches from now on. In place."""
    net.plan = tuple(
        replace(plan, dense_only=plan.dense_only or reason) if plan.name == stage else plan
        for plan in net.plan
    )
    net._inliner = None


def _some_skipped(net: DynamicNetwork, num_images: int) -> dict[str, Tensor]:
    """Return edge weights per stage, (B, E), that make images skip different blocks.

    Of every three images, the first skips every other block, the second none, and the third the
    blocks that the first runs. So each block misses the first or the last of every three images.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for stage, table in net.macs_table.stages.items():
        targets = torch.tensor(table.topology.targets, device="cpu")
        is_block = targets < targets.max()
        open_BE = 0.75 + 0.25 * torch.randint(2, (num_images, len(targets)), generator=generator)
        for image, parity in ((0, 1), (2, 0)):
            open_BE[image::3, is_block & (targets % 2 == parity)] = 0.0
        weights[stage] = open_BE
    return weights


def _run(
    net: DynamicNetwork, x: Tensor, weights: Mapping[str, Tensor], executor: Executor
) -> list[Tensor]:
    before = net.executor
    net.executor = executor
    try:
        with unchanged(net.lowered), torch.no_grad(), pinned_gates(net, weights):
            return tensors_in(net(x.clone())) + [
                buffer.detach().clone() for buffer in net.lowered.buffers()
            ]
    finally:
        net.executor = before


def _plain_agrees(
    net: DynamicNetwork, x: Tensor, weights: Mapping[str, Tensor], dense: list[Tensor]
) -> bool:
    with plain_aggregation():
        return _agree(dense, _run(net, x, weights, "dense"))


def _sparse_agrees(
    net: DynamicNetwork, x: Tensor, weights: Mapping[str, Tensor], dense: list[Tensor]
) -> bool:
    try:
        return _agree(dense, _run(net, x, weights, "sparse"))
    except DggraphError:
        raise
    except Exception:  # the block cannot run on so few images
        return False


def _agree(expected: list[Tensor], actual: list[Tensor]) -> bool:
    if [a.shape for a in expected] != [a.shape for a in actual]:
        return False
    return all(
        torch.allclose(
            a, b, rtol=0, atol=TOLERANCE.get(a.dtype, 5e-2) * float(a.abs().max()), equal_nan=True
        )
        for a, b in zip(expected, actual, strict=True)
        if a.numel() and (a.is_floating_point() or a.is_complex())
    )


def _refuse(net: DynamicNetwork, dense: list[Tensor], other: list[Tensor], name: str) -> None:
    if not _agree(dense, other):
        raise LoweringError(
            f"with some images skipping blocks, the dense executor and {name} of the lowered"
            f" {net.graph.name} differ by {largest_difference(dense, other):.3g}, so it is not"
            " returned. Leave the stage out with `stages=`."
        )
