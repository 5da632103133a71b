"""Losses on gates. Value: the meter's own numbers. Gradient: that of the expected MACs, straight
through.

Why not the expected MACs themselves: they and the real ones differ, and a loss that is content with
.70 expected was seen to end at .57 real. Why not the real ones alone: they are steps, without a
gradient; and closing one of two edges into a node saves nothing until the other closes too, which
only a probability shows.

Shape suffixes: B instances, K classes.
"""

import torch
from torch import Tensor

from dggraph.errors import InputError
from dggraph.network.gates import Gates
from dggraph.ops.divergence import divergence
from dggraph.ops.macs import MacsTable

__all__ = ["budget", "budget_of", "divergence", "kept"]


def kept(gates: Gates) -> Tensor:
    """MACs of each instance's path as a fraction of the static network's, as `record` would report
    it.

    Args:
        gates: of `net(x, return_gates=True)`, in train mode or with gradients enabled.

    Returns:
        (B,) float64, may exceed 1. Its gradient is that of the expected MACs: edges open
        independently with probability sigmoid((raw - threshold) / 0.2), and `ops/liveness` turns
        that into the probability that a node runs. This reaches every edge into a node that no
        instance reaches, so that a dead node can come back; the task's gradient does not.
        `ops/macs` says where the expectation is exact. NaN weights give NaN.

    Raises:
        InputError: the batch is empty, or the network has no stages.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> _, gates = net(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> dggraph.losses.kept(gates).shape
        torch.Size([2])
    """
    if not gates.weights or not next(iter(gates.weights.values())).shape[0]:
        raise InputError(
            "there is no instance with a path here: the batch is empty, or the network has no"
            " stages."
        )
    real_B = gates.macs()
    expected_B = gates.expected_macs()
    # Finite minus itself is exactly 0, so the value is the meter's to the bit; NaN minus itself is
    # NaN and stays visible.
    return (real_B + (expected_B - expected_B.detach())) / gates.table.static


def budget(gates: Gates, target: float) -> Tensor:
    """Squared distance of the batch's mean kept fraction from `target`; add it to the task's loss,
    times a factor.

    Of the mean, not of each instance: a hard image may cost more where an easy one costs less.
    Squared: it fades out at the target instead of pulling with full strength one way, then the
    other; and both sides count, because a net below its budget has nodes to win back. With several
    processes each sees its own batch, as with batch norm: below some eight instances a process the
    noise of the mean also pushes paths to be alike.

    Args:
        gates: of `net(x, return_gates=True)`.
        target: mean MACs to reach, as a fraction of the static network's.

    Returns:
        0-d float64, for example 0.04 for a batch that keeps 0.9 with a target of 0.7.

    Raises:
        InputError: nothing can reach `target`, since what lies outside the stages already costs as
            much; or as for `kept`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> logits, gates = net.train()(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])) + 10 * dggraph.losses.budget(gates, 0.8)
        >>> loss.backward()
    """
    return budget_of(kept(gates), gates.table, target)


def budget_of(kept_B: Tensor, table: MacsTable, target: float) -> Tensor:
    """`budget` of what `kept` gave, where that is wanted for itself too.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> _, gates = net(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> kept_B = dggraph.losses.kept(gates)
        >>> torch.equal(dggraph.losses.budget_of(kept_B, gates.table, 0.8), dggraph.losses.budget(gates, 0.8))
        True
    """
    floor = table.fixed / table.static
    if not floor < target < float("inf"):
        raise InputError(
            f"target={target} is out of reach: what lies outside the stages always runs and is"
            f" {floor:.3f} of the static network's MACs. Choose a larger fraction."
        )
    return torch.square(kept_B.mean() - target)
