"""Sensitivity: the cost of leaving out each block, against the static network's own answers.

Every image takes the static path around the block. No labels are needed. KL divergence and
agreement are relative to the static network, at the same precision and with the same executor.

Shape suffixes: B instances, K classes, E edges.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.data import Dataset

from dggraph.errors import InputError, WiringError
from dggraph.evaluation.accuracy import own_batches
from dggraph.network.block_removal import skipped_weights
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.ops.divergence import divergence
from dggraph.ops.macs import path_share
from dggraph.system import processes
from dggraph.system.devices import first_weight
from dggraph.system.loaders import load_batches, num_samples
from dggraph.system.modes import evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """The network without one block, with all others static."""

    stage: str
    node: str
    saved: float
    """MACs saved, as a fraction of the static network's.

    They include the block's router and its edges.
    """
    agreement: int
    """Images whose best class is the static network's."""
    top1: int | None
    """Images whose best class is the right one; None without labels."""
    divergence: float
    """Mean over images of KL(static outputs || outputs without the block), in nats."""
    branch_energy: float | None
    """|F(z)|^2 / |z|^2, both summed over all images, for the block z + F(z) in the static network.

    None if the shapes differ.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The cost of leaving out each routed block."""

    num_images: int
    static_top1: int | None
    """Images that the static network classifies correctly; None without labels."""
    blocks: tuple[BlockCost, ...]
    """In the order in which the backbone runs them."""
    unskippable: tuple[str, ...]
    """Blocks around which the wiring has no candidate edge."""


def measure_sensitivity(
    net: DynamicNetwork,
    dataset: Dataset[Any],
    *,
    has_labels: bool = True,
    batch_size: int = 256,
    workers: int = 0,
) -> Sensitivity:
    """Run the static network, and the static network without each of its blocks in turn.

    Args:
        net: a converted network; modes are restored.
        dataset: items (image (C, H, W), label) by index.
        has_labels: False if the labels are placeholders.
        batch_size: images per batch.
        workers: number of loader processes.

    Raises:
        InputError: the set is empty, or no block can be left out.
    """
    num_images = num_samples(dataset)
    if not num_images:
        raise InputError("there are no images to measure sensitivity on; the set is empty.")
    paths, unskippable = _paths(net)
    if not paths:
        raise InputError(
            'no block can be left out under this wiring; convert with wiring="complete".'
        )
    device = first_weight(net).device
    counts = torch.zeros((1 + len(paths), 2), dtype=torch.int64)
    divergences: list[list[float]] = []
    energies: list[dict[str, tuple[float, float]]] = []
    static = static_weights(net.graph)
    with evaluating(net):
        for images, labels in load_batches(
            dataset, own_batches(num_images, batch_size), workers=workers
        ):
            images = images.to(device)
            with pinned_gates(net, static):
                expected_BK = net(images).double().cpu()
                energies.append(_branch_energies(net, images))
            found = [expected_BK]
            for stage, node in paths:
                with pinned_gates(net, static | {stage: paths[stage, node]}):
                    found.append(net(images).double().cpu())
            for row, logits_BK in enumerate(found):
                best_B = logits_BK.argmax(1)
                counts[row] += torch.tensor(
                    [int((best_B == expected_BK.argmax(1)).sum()), int((best_B == labels).sum())]
                )
            divergences.append(
                [float(divergence(expected_BK, logits_BK).sum()) for logits_BK in found[1:]]
            )
    agreement, top1 = processes.all_reduce_sum(counts).T.tolist()
    # One item per batch; their sums are exactly rounded, so that the order does not matter.
    every_divergence = processes.all_gather_items(divergences)
    every_energy = processes.all_gather_items(energies)
    blocks = [
        BlockCost(
            stage=stage,
            node=node,
            saved=path_share(static, net.macs_table)
            - path_share(static | {stage: weights_E}, net.macs_table),
            agreement=agreement[place + 1],
            top1=top1[place + 1] if has_labels else None,
            divergence=math.fsum(row[place] for row in every_divergence) / num_images,
            branch_energy=_ratio([row[node] for row in every_energy if node in row]),
        )
        for place, ((stage, node), weights_E) in enumerate(paths.items())
    ]
    return Sensitivity(
        num_images=num_images,
        static_top1=top1[0] if has_labels else None,
        blocks=tuple(blocks),
        unskippable=unskippable,
    )


def _paths(net: DynamicNetwork) -> tuple[dict[tuple[str, str], Tensor], tuple[str, ...]]:
    """Return the edges of the path around each (stage, block), and the blocks without one."""
    paths: dict[tuple[str, str], Tensor] = {}
    unskippable: list[str] = []
    for stage in net.graph.stages:
        for node in net.graph.nodes(stage)[1:-1]:
            try:
                paths[stage, node.name] = skipped_weights(net.graph, stage, [node.name])
            except WiringError:
                unskippable.append(node.name)
    return paths, tuple(unskippable)


def _ratio(energies: list[tuple[float, float]]) -> float | None:
    branch, whole = (math.fsum(pair[place] for pair in energies) for place in (0, 1))
    return branch / whole if whole else None


def _branch_energies(net: DynamicNetwork, images: Tensor) -> dict[str, tuple[float, float]]:
    """Return (|F(z)|^2, |z|^2) of each block for this batch, on the path that the gates select."""
    watch = _BlockEnergies(net)
    watch.run(images)
    return watch.energies


class _BlockEnergies(fx.Interpreter):
    """Runs the lowered graph and records the energy of every block's input and branch."""

    def __init__(self, net: DynamicNetwork) -> None:
        super().__init__(net.lowered)
        self.energies: dict[str, tuple[float, float]] = {}
        blocks = [(plan.name, block) for plan in net.plan for block in plan.blocks]
        self.inputs = {block.input for _, block in blocks}
        self.outputs = {
            block.output: (block, net.graph.stages[stage].residual == "lift")
            for stage, block in blocks
        }
        self.held: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.outputs:
            block, is_lifted = self.outputs[n.name]
            z = self.held.pop(block.input)
            if z.shape == result.shape:
                branch = result if is_lifted else result - z
                self.energies[block.node] = (_energy(branch), _energy(z))
        if n.name in self.inputs:
            self.held[n.name] = result.clone()  # the block's first op may overwrite it
        return result


def _energy(values: Tensor) -> float:
    return float(values.double().square().sum())
