"""Losses on gates: the value is the measured MACs, the gradient that of the expected MACs.

The expected MACs cannot be the value, because they differ from the real ones: a loss that was
satisfied with 0.70 expected ended at 0.57 real. The real MACs cannot give the gradient, because
they are a step function. Moreover, closing one of two edges into a node saves nothing until the
other closes too, which only a probability shows.

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
    """Return the MACs ratio of each instance: its path's MACs over the static network's MACs.

    The values are those that `record` reports.

    Args:
        gates: the gates of `net(x, return_gates=True)`, in train mode or with gradients enabled.

    Returns:
        (B,) float64, which may exceed 1. Its gradient is that of the expected MACs: edges open
        independently with probability sigmoid((raw - threshold) / 0.2), and `ops/liveness` turns
        that into the probability that a node runs. Unlike the task's gradient, it reaches every
        edge into a node that no instance reaches, so that a dead node can come back. `ops/macs`
        says where the expectation is exact. NaN weights give NaN.

    Raises:
        InputError: these are not gates, the batch is empty, or the network has no stages.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> _, gates = net(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> dggraph.losses.kept(gates).shape
        torch.Size([2])
    """
    if not isinstance(gates, Gates):
        raise InputError(
            f"gates are needed, not {type(gates).__name__}: only they say which edges were open."
            " Write output, gates = net(x, return_gates=True)."
        )
    if not gates.weights or not next(iter(gates.weights.values())).shape[0]:
        raise InputError(
            "there is no path to measure: the batch is empty, or the network has no stages. Give"
            " at least one image, to a network with a dynamic stage."
        )
    real_B = gates.macs()
    expected_B = gates.expected_macs()
    # A finite number minus itself is exactly 0, so the value is bitwise that of the meter; NaN
    # minus itself is NaN and stays visible.
    return (real_B + (expected_B - expected_B.detach())) / gates.table.static


def budget(gates: Gates, target: float) -> Tensor:
    """Return the squared distance of the batch's mean MACs ratio from `target`.

    Add it to the task's loss, scaled by a factor. At a threshold of 0 hardly any edge closes,
    whatever the factor: let the threshold rise to 0.5 in training, or convert with it.

    The loss acts on the mean, not on each instance, so that a hard image may cost more where an
    easy one costs less. The square fades out at the target instead of pulling at full strength from
    one side and then from the other. Both sides count, because a network below its budget has nodes
    to win back. In distributed training each process uses the mean of its own batch, as batch norm
    does. Below about eight instances per process, the noise of that mean also pushes paths to be
    alike.

    Args:
        gates: the gates of `net(x, return_gates=True)`.
        target: the mean MACs to reach, as a fraction of the static network's MACs.

    Returns:
        0-d float64, for example 0.04 for a batch that keeps 0.9 with a target of 0.7.

    Raises:
        InputError: the target cannot be reached, since the layers outside the stages alone cost as
            much, or all parts together less; or as for `kept`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> logits, gates = net.train()(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
        >>> (loss + 10 * dggraph.losses.budget(gates, 0.8)).backward()
    """
    return budget_of(kept(gates), gates.table, target)


def budget_of(kept_B: Tensor, table: MacsTable, target: float) -> Tensor:
    """Return `budget` from the result of `kept`, for callers that use both.

    Args:
        kept_B: the MACs ratio of each instance.
        table: the MACs of the network's parts, `gates.table`.
        target: as for `budget`.

    Raises:
        InputError: the target cannot be reached.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> _, gates = net(torch.rand(2, 3, 32, 32), return_gates=True)
        >>> loss = dggraph.losses.budget_of(dggraph.losses.kept(gates), gates.table, 0.8)
        >>> torch.equal(loss, dggraph.losses.budget(gates, 0.8))
        True
    """
    refuse_out_of_reach(table, target)
    return torch.square(kept_B.mean() - target)


def refuse_out_of_reach(table: MacsTable, target: float) -> None:
    """Check that paths can keep the share `target` of the static network's MACs.

    Raises:
        InputError: they cannot: layers outside the stages take as much, or all parts together less.
    """
    parts = sum(sum(stage.vertices) + sum(stage.edges) for stage in table.stages.values())
    floor, ceiling = table.fixed / table.static, (table.fixed + parts) / table.static
    if not floor < target <= max(1.0, ceiling):
        raise InputError(
            f"target={target} is out of reach: the layers outside the stages always run and take"
            f" {floor:.3f} of the static network's MACs, and all edges together {ceiling:.3f}."
            " Choose a fraction between them, such as 0.8 for 80 %."
        )
