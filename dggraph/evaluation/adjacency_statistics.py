"""What adjacency matrices have to do with classes and with the static network, as plain numbers.

Shape suffixes: M images, E edges, N vertices of a stage, K classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dggraph.ops.liveness import Topology

SMALLEST = 1e-9
"""Variances below it are rounding errors of weights that are equal."""


class Similarities(NamedTuple):
    """How alike the adjacencies of two images are, on average.

    It is the cosine of their deviations from the mean adjacency: 1 for equal ones, 0 for unrelated
    ones.
    """

    within: float | None
    """The mean over two images of one class; None if there are no two that deviate."""
    between: float | None
    """The mean over two images of different classes."""
    pairs_KK: Tensor
    """The mean over an image of one class and one of another; NaN where there are no such pairs."""


def class_similarities(weights_ME: Tensor, labels_M: Tensor, num_classes: int) -> Similarities:
    """Compare all pairs of images by their edge weights.

    Images whose adjacency is the mean have no direction and are left out.

    Args:
        weights_ME: the weights of all stages side by side.
        labels_M: the class of each image, from 0.
        num_classes: K.
    """
    moved_ME = weights_ME.double() - weights_ME.double().mean(0)
    length_M = moved_ME.norm(dim=1)
    has_direction_M = length_M > SMALLEST * max(1.0, float(weights_ME.abs().max()))
    units_ME = moved_ME[has_direction_M] / length_M[has_direction_M, None]
    labels_M = labels_M[has_direction_M]
    # the sum over all pairs of two groups is the product of the groups' sums
    sums_KE = units_ME.new_zeros(num_classes, weights_ME.shape[1]).index_add_(0, labels_M, units_ME)
    counts_K = labels_M.bincount(minlength=num_classes).double()
    totals_KK, numbers_KK = sums_KE @ sums_KE.T, counts_K[:, None] * counts_K
    totals_KK -= torch.diag(counts_K)  # an image with itself
    numbers_KK -= torch.diag(counts_K)
    is_same_KK = torch.eye(num_classes, dtype=torch.bool)
    return Similarities(
        _mean(totals_KK[is_same_KK], numbers_KK[is_same_KK]),
        _mean(totals_KK[~is_same_KK], numbers_KK[~is_same_KK]),
        torch.where(numbers_KK > 0, totals_KK / numbers_KK, torch.nan),
    )


def explained_variance(weights_ME: Tensor, groups_M: Tensor) -> list[float | None]:
    """Return, for each edge, the share of its variance that lies between groups of images.

    Without any relation the share is (groups - 1) / (images - 1) on average. It is None for an
    edge whose weight is the same for all images.
    """
    weights_ME = weights_ME.double()
    _, groups_M = torch.unique(groups_M, return_inverse=True)
    counts_G = groups_M.bincount().double()
    sums_GE = weights_ME.new_zeros(len(counts_G), weights_ME.shape[1])
    means_GE = sums_GE.index_add_(0, groups_M, weights_ME) / counts_G[:, None]
    mean_E = weights_ME.mean(0)
    between_E = (counts_G[:, None] * (means_GE - mean_E).square()).sum(0)
    total_E = (weights_ME - mean_E).square().sum(0)
    return [
        between / total if total > SMALLEST * len(weights_ME) else None
        for between, total in zip(between_E.tolist(), total_E.tolist(), strict=True)
    ]


def path_gain(weights_ME: Tensor, topology: Topology) -> Tensor:
    """Return the sum over all paths from v0 to `out` of the product of their weights, (M,).

    If every block were the identity, the stage would scale its input by this.
    """
    gains = [torch.ones_like(weights_ME[:, 0])]
    for vertex in range(1, topology.num_vertices):
        place = topology.incoming(vertex)
        terms = [
            weights_ME[:, edge] * gains[source]
            for edge, source in enumerate(topology.sources[place], place.start)
        ]
        gains.append(torch.stack(terms).sum(0))
    return gains[-1]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; equal values share their mean rank.

    It is None for fewer than three values, or if all values on one side are equal.
    """
    if len(one) < 3:
        return None
    ranks = torch.stack([_ranks(torch.tensor(values).double()) for values in (one, other)])
    moved = ranks - ranks.mean(1, keepdim=True)
    scale = float(moved.norm(dim=1).prod())
    return float(moved[0] @ moved[1]) / scale if scale > 0 else None


def _ranks(values: Tensor) -> Tensor:
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal - 1) / 2


def _mean(totals: Tensor, numbers: Tensor) -> float | None:
    number = float(numbers.sum())
    return float(totals.sum()) / number if number else None
