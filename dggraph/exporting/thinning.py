"""A smaller static network: the backbone without the blocks that its answers miss least.

1. Of all blocks that may go, take out the one whose loss raises the divergence from the backbone's
   answers least for the MACs that it saves; repeat until the budget is met.
2. The last one is often larger than needed: put back what still fits, the best one first.

No labels are needed. Shape suffixes: B images, K classes.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, fx
from torch.utils.data import Dataset

from dggraph.errors import InputError, WiringError
from dggraph.exporting.fixed_path import static
from dggraph.graph.ir import BlockNode, input_shape
from dggraph.network.block_removal import skipped_weights
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.ops.divergence import divergence
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches, num_samples
from dggraph.system.modes import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedBlock:
    """One block that was taken out."""

    node: str
    """Its name in the graph."""
    module_path: str
    """Its module in the backbone."""
    saved: float
    """Its MACs, as a fraction of the backbone's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinned:
    """A backbone without some of its blocks, and what that costs.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> images = [(torch.rand(3, 32, 32), 0) for _ in range(4)]
        >>> thinned = dggraph.thin(net, images, budget=0.8)
        >>> thinned.is_met, len(thinned.removed)
        (True, 2)
    """

    module: fx.GraphModule = field(repr=False)
    """The static network, in eval mode; its state-dict keys are the backbone's."""
    budget: float
    kept: float
    """MACs of `module` as a fraction of the backbone's."""
    removed: tuple[RemovedBlock, ...]
    """In the order in which the backbone ran them."""
    fixed: tuple[tuple[str, str], ...]
    """(block, reason) of each block that could not be taken out."""
    num_images: int
    agreement: int
    """Images whose best class is still the backbone's."""
    divergence: float
    """Mean over images of KL(backbone || module), in nats."""

    @property
    def is_met(self) -> bool:
        """Whether `kept` is at most the budget."""
        return self.kept <= self.budget

    def __str__(self) -> str:
        """Return one line per fact."""
        names = ", ".join(block.module_path for block in self.removed) or "none"
        verdict = "met" if self.is_met else "missed, since no other block can be taken out"
        return "\n".join(
            [
                f"MACs kept: {self.kept:.3f} of the backbone's, budget {self.budget:g} {verdict}",
                f"blocks taken out: {names}",
                f"before any fine-tuning, on {self.num_images} images: the backbone's answer for"
                f" {self.agreement}, divergence {self.divergence:.3g} nats",
                *(f"{node} stays: {why}" for node, why in self.fixed),
            ]
        )


def thin(
    net: DynamicNetwork,
    dataset: Dataset[Any] | Sequence[tuple[Tensor, int]],
    *,
    budget: float,
    batch_size: int = 64,
) -> Thinned:
    """Take blocks out of the backbone of `net` until it keeps at most `budget` of its MACs.

    A block that is taken out acts as `nn.Identity`, for every image. Routers do not matter: what
    counts is how much the answers of the backbone change. Blocks that are not one module called
    once stay, since the result must load into the backbone with `nn.Identity` in their place.

    Args:
        net: A converted network; it is not changed.
        dataset: Items (image (C, H, W), label) by index; labels are not read. Give images that
            training did not see.
        budget: MACs to keep, as a fraction of the backbone's, above 0 and below 1.
        batch_size: Images per batch.

    Returns:
        The static network, and what went. Where too few blocks can go, `is_met` is False.

    Raises:
        InputError: The set is empty, the budget is not between 0 and 1, or no block can be taken
            out.
        ExportError: As for `static`.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> images = [(torch.rand(3, 32, 32), 0) for _ in range(4)]
        >>> small = dggraph.thin(net, images, budget=0.7).module
        >>> small(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    require_converted(net, "thin")
    if not 0 < budget < 1:
        raise InputError(
            f"budget={budget!r} is not a fraction of the backbone's MACs above 0 and below 1. Give"
            " for example 0.7."
        )
    if net.blueprint.aggregation != "sum":
        raise InputError(
            f"aggregation={net.blueprint.aggregation!r} adds something to plain sums, so without a"
            " block the rest would not be the backbone's. Convert the backbone with"
            ' aggregation="sum".'
        )
    num_images = num_samples(dataset)  # type: ignore[arg-type]
    if not num_images:
        raise InputError("there are no images to choose blocks on; the set is empty.")
    macs = {
        node.name: node.macs / net.macs_table.static
        for stage in net.graph.stages
        for node in _blocks(net, stage)
    }
    fixed = _fixed(net)
    free = [name for name in macs if name not in dict(fixed)]
    if not free:
        reasons = "; ".join(f"{name}: {why}" for name, why in fixed) or "it has no stages"
        raise InputError(f"no block of {net.graph.name} can be taken out ({reasons}).")
    search = _Search(net, dataset, batch_size, macs)
    removed = _put_back(search, _take_out(search, free, budget), budget)
    found = search.measure([removed])[removed]
    paths = {
        node.name: node.module_path for stage in net.graph.stages for node in _blocks(net, stage)
    }
    return Thinned(
        module=static(net, search.weights(removed)).eval(),
        budget=budget,
        kept=search.kept(removed),
        removed=tuple(
            RemovedBlock(node=name, module_path=paths[name], saved=macs[name])
            for name in macs
            if name in removed
        ),
        fixed=fixed,
        num_images=num_images,
        agreement=found.agreement,
        divergence=found.divergence,
    )


class _Cost(NamedTuple):
    divergence: float
    agreement: int


class _Search:
    """Measures the backbone without sets of its blocks, each set once."""

    def __init__(
        self, net: DynamicNetwork, dataset: Any, batch_size: int, macs: Mapping[str, float]
    ) -> None:
        self.net, self.dataset, self.macs = net, dataset, macs
        places = range(num_samples(dataset))
        self.batches = [list(places[at : at + batch_size]) for at in places[::batch_size]]
        self.expected: list[Tensor] = []
        self.known: dict[frozenset[str], _Cost] = {}

    def kept(self, removed: Collection[str]) -> float:
        """Return the MACs without these blocks, as a fraction of the backbone's."""
        return 1 - math.fsum(self.macs[name] for name in removed)

    def weights(self, removed: Collection[str]) -> dict[str, Tensor]:
        """Return the path around these blocks.

        Raises:
            WiringError: The wiring has no such path.
        """
        graph = self.net.graph
        return {
            stage: skipped_weights(
                graph,
                stage,
                [node.name for node in _blocks(self.net, stage) if node.name in removed],
            )
            for stage in graph.stages
        }

    def measure(self, candidates: Iterable[frozenset[str]]) -> dict[frozenset[str], _Cost]:
        """Return the cost of each of the sets that the wiring has a path around."""
        paths = {}
        for removed in candidates:
            with suppress(WiringError):
                paths[removed] = self.weights(removed)
        new = {removed: path for removed, path in paths.items() if removed not in self.known}
        if new:
            self._run(new)
        return {removed: self.known[removed] for removed in paths}

    def _run(self, paths: Mapping[frozenset[str], Mapping[str, Tensor]]) -> None:
        totals = {removed: (list[float](), list[int]()) for removed in paths}
        device, is_first = first_weight(self.net).device, not self.expected
        loaded = load_batches(self.dataset, self.batches, workers=0)
        with evaluating(self.net):
            for place, (images, *_) in enumerate(loaded):
                images = images.to(device)
                if is_first:
                    self.expected.append(self._answers(static_weights(self.net.graph), images))
                expected_BK = self.expected[place]
                for removed, path in paths.items():
                    logits_BK = self._answers(path, images)
                    divergences, agreements = totals[removed]
                    divergences.append(float(divergence(expected_BK, logits_BK).sum()))
                    is_same_B = logits_BK.argmax(1) == expected_BK.argmax(1)
                    agreements.append(int(is_same_B.sum()))
        num_images = num_samples(self.dataset)
        for removed, (divergences, agreements) in totals.items():
            self.known[removed] = _Cost(math.fsum(divergences) / num_images, sum(agreements))

    def _answers(self, path: Mapping[str, Tensor], images: Tensor) -> Tensor:
        with pinned_gates(self.net, path):
            logits_BK: Tensor = self.net(images).double().cpu()
        return logits_BK


def _take_out(search: _Search, free: Sequence[str], budget: float) -> frozenset[str]:
    """Return blocks without which the budget is met, or all that can go together."""
    removed: frozenset[str] = frozenset()
    while search.kept(removed) > budget:
        found = search.measure(removed | {name} for name in free if name not in removed)
        if not found:
            break
        before, kept = search.measure([removed])[removed].divergence, search.kept(removed)
        prices = {
            candidate: (cost.divergence - before) / (kept - search.kept(candidate))
            for candidate, cost in found.items()
        }
        removed = min(prices, key=prices.__getitem__)
    return removed


def _put_back(search: _Search, removed: frozenset[str], budget: float) -> frozenset[str]:
    """Return `removed` without the blocks that still fit into the budget."""
    while True:
        smaller = [removed - {name} for name in sorted(removed)]
        found = search.measure(one for one in smaller if search.kept(one) <= budget)
        if not found:
            return removed
        removed = min(found, key=lambda candidate: found[candidate].divergence)


def _blocks(net: DynamicNetwork, stage: str) -> tuple[BlockNode, ...]:
    return net.graph.nodes(stage)[1:-1]


def _fixed(net: DynamicNetwork) -> tuple[tuple[str, str], ...]:
    """Return (block, reason) of each block that `nn.Identity` cannot replace."""
    places = {
        fx_node.name: str(fx_node.target)
        for fx_node in net.lowered.graph.nodes
        if fx_node.op in ("call_module", "get_attr")
    }
    found = []
    for stage in net.plan:
        for plan, node in zip(stage.blocks, _blocks(net, stage.name), strict=True):
            why = _why_fixed(net, stage.name, node)
            if not why and not _is_one_module(node.module_path, plan.fx_nodes, places):
                why = "it is not one module that is called once"
            found += [(node.name, why)] if why else []
    return tuple(found)


def _why_fixed(net: DynamicNetwork, stage: str, node: BlockNode) -> str:
    if any(edge.kind == "concat" for edge in net.graph.edges(stage)):
        return "its stage grows by concatenation"
    if input_shape(net.graph, node.name) != node.shape:
        return "it changes the shape"
    try:
        skipped_weights(net.graph, stage, [node.name])
    except WiringError:
        return "the wiring has no edge around it"
    return "" if node.macs else "it has no MACs to save"


def _is_one_module(path: str, fx_nodes: Collection[str], places: Mapping[str, str]) -> bool:
    """Whether a block reads what lies in the module `path`, and nothing else does."""
    is_inside = {
        name: place == path or place.startswith(f"{path}.") for name, place in places.items()
    }
    return {name for name in fx_nodes if name in places} == {
        name for name, inside in is_inside.items() if inside
    }
