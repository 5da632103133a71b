"""What the routing of a trained network is worth, on held-out images with labels.

The first pass over the images records each image's adjacency. The second repeats every batch with
adjacencies that were changed: the mean one, another image's, the static one, and each image's own
with one edge closed. It also runs at other thresholds.

Shape suffixes: M images, E edges of a stage, K classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dggraph.compiler.lowered import routing_of
from dggraph.errors import InputError
from dggraph.evaluation.adjacency_statistics import (
    class_similarities,
    explained_variance,
    path_gain,
    rank_correlation,
)
from dggraph.evaluation.analysis_passes import THRESHOLDS, compare, growths_of
from dggraph.evaluation.swapped_gates import SWAPS, Counts, Images, Recorded, record
from dggraph.graph.analysis import Analysis, ClassFacts, EdgeFacts, StageGain, ThresholdFacts
from dggraph.network.gate_contexts import decided_edges
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.ops.granularity import PARTS_GATES
from dggraph.system import processes
from dggraph.system.devices import first_weight
from dggraph.system.loaders import num_samples
from dggraph.system.modes import evaluating


def analyse(
    net: DynamicNetwork,
    dataset: Dataset[Any],
    classes: Sequence[str],
    *,
    attributes: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Analysis:
    """Measure what the routing of `net` is worth; modes and thresholds are restored.

    It takes about as many passes over the images as there are edges.

    Args:
        net: a converted network.
        dataset: items (image (C, H, W), label) by index, in one order.
        classes: names by label.
        attributes: for each attribute of the images, its values, (M,); together they are domains.
        batch_size: images per batch.
        workers: number of loader processes.
        progress: called with the number of images of the second pass that are done, and of all.

    Raises:
        InputError: there are no images or no stages, labels do not fit, or there are several
            processes.
        GateError: an edge weight is NaN.
    """
    num_images = num_samples(dataset)
    if num_images < 2 or not net.graph.stages:
        raise InputError(
            f"{num_images} images and {len(net.graph.stages)} stages: an analysis compares the"
            " adjacencies of several images. Give a network with routed blocks, and more images."
        )
    if processes.world_size() > 1:
        raise InputError("an analysis runs on one process. Leave torchrun out.")

    images = Images(dataset, batch_size, workers, first_weight(net).device)
    with evaluating(net), torch.no_grad():
        own = _own_threshold(net)
        recorded = record(net, images, len(classes))
        counts, thresholds = compare(
            net, images, recorded, own, lambda done: progress(done, num_images)
        )
        first, _ = next(images.read())
        growths = [growths_of(net, first, pinned) for pinned in (None, static_weights(net.graph))]
    groups = _groupings(recorded.labels_M, attributes or {})
    edges = _edge_facts(net, recorded, counts, groups)
    opened = [edge for edge in edges if edge.open_fraction > 0]
    side_by_side = torch.cat(list(recorded.weights.values()), dim=1)
    alike = class_similarities(side_by_side, recorded.labels_M, recorded.num_classes)
    names = [*classes, *(f"output {one}" for one in range(len(classes), recorded.num_classes))]
    return Analysis(
        name=net.graph.name,
        router=net.blueprint.router,
        gate=net.blueprint.gate,
        granularity=str(net.blueprint.granularity),
        num_images=num_images,
        accuracy=counts.accuracy,
        kept=float(recorded.kept_M.mean()),
        swapped={name: counts.change(name) for name in SWAPS},
        within=alike.within,
        between=alike.between,
        classes=_class_facts(alike.pairs_KK, recorded, names),
        edges=edges,
        rank_correlation=rank_correlation(
            [edge.mean_weight for edge in opened], [edge.divergence for edge in opened]
        ),
        thresholds=tuple(
            ThresholdFacts(
                threshold=threshold,
                accuracy=right / num_images,
                kept=kept / num_images,
                is_own=threshold == own,
            )
            for threshold, (right, kept) in sorted(thresholds.items())
        ),
        chance={
            name: (len(torch.unique(groups_M)) - 1) / (num_images - 1)
            for name, groups_M in groups.items()
        },
        gains=_gains(net, recorded, growths),
    )


def _own_threshold(net: DynamicNetwork) -> float:
    """Return the threshold of the first stage; all have one unless someone set them apart.

    One of `THRESHOLDS` is returned as it is there: the network has it in float32.
    """
    own = routing_of(net.lowered, next(iter(net.graph.stages))).threshold
    return next((one for one in THRESHOLDS if own == one), float(own))


def _groupings(labels_M: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return how images can be grouped: by class, by domain, and by each attribute that varies."""
    varied = {name: values for name, values in attributes.items() if len(torch.unique(values)) > 1}
    groups = {"class": labels_M}
    if varied:
        _, domains = torch.unique(torch.stack(list(varied.values()), 1), dim=0, return_inverse=True)
        groups["domain"] = domains
    return groups | (varied if len(varied) > 1 else {})


def _edge_facts(
    net: DynamicNetwork, recorded: Recorded, counts: Counts, groups: Mapping[str, Tensor]
) -> tuple[EdgeFacts, ...]:
    facts: list[EdgeFacts] = []
    num_images = len(recorded.labels_M)
    for stage in net.graph.stages:
        weights_ME = recorded.weights[stage].double()
        start_E = _start(net, stage)
        moves_ME = (recorded.raw[stage].double() - start_E).abs()
        explained = {name: explained_variance(weights_ME, one) for name, one in groups.items()}
        num_open_E = (weights_ME != 0).sum(0).clamp_min(1)
        spread_E = recorded.spreads[stage].double().sum(0) / num_open_E  # 0 where closed
        for place, edge in enumerate(net.graph.edges(stage)):
            facts.append(
                EdgeFacts(
                    stage=stage,
                    source=edge.source,
                    target=edge.target,
                    is_static=edge.is_static,
                    start=float(start_E[place]),
                    mean_weight=float(weights_ME[:, place].mean()),
                    deviation=float(weights_ME[:, place].std(correction=0)),
                    spread=float(spread_E[place]),
                    open_fraction=float((weights_ME[:, place] != 0).double().mean()),
                    mean_move=float(moves_ME[:, place].mean()),
                    largest_move=float(moves_ME[:, place].max()),
                    closed=counts.change((stage, place)),
                    divergence=counts.divergences[stage, place] / num_images,
                    explained={name: shares[place] for name, shares in explained.items()},
                )
            )
    return tuple(facts)


def _start(net: DynamicNetwork, stage: str) -> Tensor:
    """Return the weights of `stage` at logits of 0, (E,) float64."""
    start_E = torch.zeros(len(net.graph.edges(stage)), dtype=torch.float64)
    routing, weight = routing_of(net.lowered, stage), first_weight(net)
    with torch.no_grad():
        for vertex, places in decided_edges(net, stage).items():
            gate = routing.gate(vertex)
            if isinstance(gate, PARTS_GATES):
                gate = gate.gate  # all weights of an edge begin alike
            logits = torch.zeros(1, len(places), dtype=torch.float32, device=weight.device)
            start_E[places] = gate(logits)[0].double().cpu()
    return start_E


def _class_facts(
    pairs_KK: Tensor, recorded: Recorded, names: Sequence[str]
) -> tuple[ClassFacts, ...]:
    numbers = recorded.labels_M.bincount(minlength=len(names)).tolist()
    facts = []
    for label, row in enumerate(pairs_KK.tolist()):
        if not numbers[label]:
            continue
        others = {k: one for k, one in enumerate(row) if k != label and one == one}
        nearest = max(others, key=others.__getitem__, default=None)
        facts.append(
            ClassFacts(
                name=names[label],
                num_images=numbers[label],
                within=row[label] if row[label] == row[label] else None,
                nearest=None if nearest is None else names[nearest],
                nearest_similarity=None if nearest is None else others[nearest],
            )
        )
    return tuple(facts)


def _gains(
    net: DynamicNetwork, recorded: Recorded, growths: Sequence[Mapping[str, float]]
) -> tuple[StageGain, ...]:
    static = static_weights(net.graph)
    return tuple(
        StageGain(
            stage=stage,
            gain=float(path_gain(weights_ME.double(), table.topology).mean()),
            static_gain=float(path_gain(static[stage].double()[None], table.topology)),
            growth=growths[0][stage],
            static_growth=growths[1][stage],
        )
        for (stage, weights_ME), table in zip(
            recorded.weights.items(), net.macs_table.stages.values(), strict=True
        )
    )
