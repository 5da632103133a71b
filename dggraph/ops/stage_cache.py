"""The state of one stage's backward pass: what nodes and edges get their gradients from.

A node's gradient is dx_i = sum_j A_ij dz_j, and an edge's is dA_ij = <x_i, dz_j>. Both read the
gradients dz_j of all consumers of node i, so one pass over memory computes both, as soon as the
last consumer has stored its own.

Shape suffixes: B instances, E edges.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dggraph.ops.weighted_sum import products_with, sum_and_products, weighted_sum
from dggraph.system.torch_private import backward_pass


class Reading(NamedTuple):
    """How a node reads one of its sources, and the gradient that it got."""

    grad: Tensor
    """dz of the node, (B, ...)."""
    weight_B: Tensor
    feature: Tensor
    """The source's features, (B, ...)."""


class Cache:
    """What a stage's nodes leave for their sources in one backward pass."""

    def __init__(self) -> None:
        """Start without readings."""
        self.shared: set[int] = set()
        """Nodes whose features get a gradient here."""
        self.collected: set[int] = set()
        """Nodes whose outgoing edges' weights get their gradients here."""
        self._task = -1
        self._readings: dict[int, dict[int, Reading]] = {}
        self._flows: dict[int, Tensor] = {}
        self._products: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def put(self, source: int, target: int, reading: Reading) -> None:
        """Store how node `target` read node `source`, until `source` is visited."""
        self._enter()
        self._readings.setdefault(source, {})[target] = reading

    def flow(self, source: int) -> Tensor | None:
        """Return dx of node `source`, and forget it; None if no node left anything for it."""
        self._visit(source)
        return self._flows.pop(source, None)

    def products(self, source: int, targets: tuple[int, ...]) -> Tensor | None:
        """Return dA (B, E) of the edges from `source` to `targets`, and forget it.

        It is 0 for a target that left nothing, and None if none left anything.
        """
        self._visit(source)
        found, products_BE = self._products.pop(source, ((), None))
        if products_BE is None or found == targets:
            return products_BE
        if found == targets[::-1]:
            return products_BE.flip(1)
        columns = dict(zip(found, products_BE.unbind(1), strict=True))
        nothing = torch.zeros_like(products_BE[:, 0])
        return torch.stack([columns.get(target, nothing) for target in targets], dim=1)

    def _visit(self, source: int) -> None:
        """Turn the readings of node `source` into its gradients, in one pass over its consumers'.

        The gradient of a consumer is freed once its last source has been visited.
        """
        self._enter()
        readings = self._readings.pop(source, {})
        if not readings:
            return
        # The last node leaves its gradient first. Autograd adds in that order too, so a lifted
        # skip has the backbone's gradient to the bit.
        targets, found = tuple(readings), list(readings.values())
        grads, feature = [one.grad for one in found], found[0].feature
        weights_BE = torch.stack([one.weight_B for one in found], dim=1)
        if source not in self.collected:
            self._flows[source] = weighted_sum(grads, weights_BE)
            return
        if source in self.shared:
            self._flows[source], products_BE = sum_and_products(grads, weights_BE, feature)
        else:
            products_BE = products_with(grads, feature)
        self._products[source] = targets, products_BE

    def _enter(self) -> None:
        """Drop what an earlier backward pass left that covered only a part of the stage."""
        task = backward_pass()
        if task != self._task:
            self._task = task
            self._readings.clear()
            self._flows.clear()
            self._products.clear()


def stage_cache() -> Cache:
    """Return an empty cache for one stage and one forward pass."""
    return Cache()
