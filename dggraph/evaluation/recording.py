"""Record what every instance did: its adjacency matrices, its path and its MACs; of an image also what its model said of it.

Outside the model, so training sees none of it.

Shape suffixes: B instances, E candidate edges of a stage, V vertices of a stage (v0, v1 .. vN, out).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dggraph.errors import InputError
from dggraph.graph.atlas import Detected
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.models.preprocessing import preprocess_image
from dggraph.network.digests import digest_of
from dggraph.network.execution import refuse_nan
from dggraph.network.network import DynamicNetwork, Gates, class_names
from dggraph.network.outputs import join_outputs
from dggraph.ops.liveness import live_vertices
from dggraph.system.modes import evaluating


@dataclass(frozen=True, slots=True)
class Recording:
    """What `record` saw, in input order."""

    output: Any
    """The backbone's output for the whole batch."""
    adjacency: dict[str, Tensor]
    """Per stage (B, V, V): row = source, column = target, 0 where an edge is inactive."""
    paths: tuple[ActivatedPath, ...]
    """One per instance."""
    macs: Tensor
    """(B,) int64: multiply-accumulates of each instance's path, routers and aggregation included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopClass:
    """The most probable class of an image."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a model said of one image, and the path on which its network came there."""

    path: ActivatedPath
    gates: Gates
    """On the CPU."""
    top_class: TopClass | None
    """Where the network is a classifier."""
    detected: Detected | None
    """Where it is the backbone of a detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A model that is shown one image at a time, and the network in it whose paths are noted."""

    name: str
    net: DynamicNetwork
    predict: Callable[[Image.Image], Prediction]
    """Runs an image by itself, in eval mode without gradients; modes are restored. Raises GateError where an edge weight is NaN."""
    identify: Callable[[], Mapping[str, str]]
    """What predictions depend on, by name: the same for models that see the same."""
    is_detector: bool


def make_predictor(net: DynamicNetwork) -> Predictor:
    """Predictor a converted network.

    Raises:
        InputError: it does not say how images become its input, or has no stages.
    """
    if net.preprocess is None:
        raise InputError("this network does not say how images become its input; give --input-size when converting it.")
    require_stages(net)
    predict, identify = partial(_predict, net), partial(identify_network, net)
    return Predictor(name=net.graph.name, net=net, predict=predict, identify=identify, is_detector=False)


def as_predictor(watched: DynamicNetwork | Predictor) -> Predictor:
    """A network watched; a predictor as it is.

    Raises:
        InputError: as for `make_predictor`.
    """
    return make_predictor(watched) if isinstance(watched, DynamicNetwork) else watched


def record(net: DynamicNetwork, x: Tensor, *, batch_size: int = 1) -> Recording:
    """Run `x` through `net` in eval mode without gradients and note every instance's path.

    Args:
        net: a converted network; its mode is restored.
        x: (B, C, H, W).
        batch_size: instances a forward pass; 1 by default, because a weight at the threshold may fall differently in another batch.

    Raises:
        InputError: `x` is no image batch, or `batch_size` is not positive.
        GateError: an edge weight is NaN; names stage, edge and instance.
    """
    require_stages(net)
    if x.ndim != 4 or batch_size < 1:
        raise InputError(f"record needs a batch (B, C, H, W) and a positive batch_size, got {tuple(x.shape)} and {batch_size}.")
    outputs: list[Any] = []
    parts: list[Gates] = []
    with evaluating(net):
        for chunk in torch.split(x, batch_size):
            output, gates = net(chunk, return_gates=True)
            outputs.append(output)
            parts.append(gates)
    stages = list(net.graph.stages)
    gates = parts[0]._replace(
        weights={stage: torch.cat([part.weights[stage] for part in parts]) for stage in stages},
        raw={stage: torch.cat([part.raw[stage] for part in parts]) for stage in stages},
    )
    paths = activated_paths(net.graph, gates)
    adjacency = {stage: adjacency_matrix(net.graph, stage, gates.weights[stage]) for stage in stages}
    macs = torch.tensor([path.macs for path in paths], dtype=torch.int64, device=x.device)
    return Recording(join_outputs(outputs), adjacency, paths, macs)


def activated_paths(graph: DynamicGraph, gates: Gates) -> tuple[ActivatedPath, ...]:
    """The path of every instance of a batch.

    Args:
        graph: whose gates they are.
        gates: of a forward pass in eval mode.

    Raises:
        GateError: an edge weight is NaN; names stage, edge and instance.
    """
    for stage, raw_BE in gates.raw.items():
        refuse_nan(graph, stage, raw_BE)
    macs = gates.macs().long().tolist()
    margins, lists = _margins(gates), {stage: weights_BE.tolist() for stage, weights_BE in gates.weights.items()}
    return tuple(
        ActivatedPath(
            weights={stage: tuple(weights[index]) for stage, weights in lists.items()},
            macs=macs[index],
            margin=margins[index],
        )
        for index in range(len(macs))
    )


def adjacency_matrix(graph: DynamicGraph, stage: str, weights_BE: Tensor) -> Tensor:
    """(B, E) edge weights as (B, V, V) matrices: row = source, column = target."""
    place = {node.name: index for index, node in enumerate(graph.nodes(stage))}
    rows = [place[edge.source] for edge in graph.edges(stage)]
    columns = [place[edge.target] for edge in graph.edges(stage)]
    adjacency_BVV = weights_BE.new_zeros((weights_BE.shape[0], len(place), len(place)))
    adjacency_BVV[:, rows, columns] = weights_BE
    return adjacency_BVV


def require_stages(net: DynamicNetwork) -> None:
    """Refuse a network without paths."""
    if not net.graph.stages:
        raise InputError("this network has no stages, so there are no paths to record.")


def _predict(net: DynamicNetwork, image: Image.Image) -> Prediction:
    assert net.preprocess is not None
    x = preprocess_image(image, net.preprocess)
    parameter = next((p for p in net.parameters() if p.is_floating_point()), x)
    with evaluating(net):
        output, gates = net(x.to(parameter.device, parameter.dtype), return_gates=True)
        (path,) = activated_paths(net.graph, gates)
    top_class = None
    if isinstance(output, Tensor) and output.ndim == 2:
        best, index = output.float().softmax(1)[0].max(0)
        label = class_names(net, output.shape[1])[int(index)]
        top_class = TopClass(label=label, index=int(index), probability=float(best))
    return Prediction(path=path, gates=on_cpu(gates), top_class=top_class, detected=None)


def on_cpu(gates: Gates) -> Gates:
    """Copies that outlive the pass."""
    weights, raw, thresholds = ({stage: one.cpu() for stage, one in part.items()} for part in gates[:3])
    return Gates(weights, raw, thresholds, gates.table)


def identify_network(net: DynamicNetwork) -> dict[str, str]:
    """What its predictions depend on, by name."""
    settings = {"preprocess": net.preprocess, "labels": net.labels, "gate": net.blueprint.gate, "executor": net.executor}
    return {"network": digest_of(net), "network's settings": repr(settings)}


def _margins(gates: Gates) -> list[float]:
    """Per instance the smallest |weight - threshold| over edges whose source is live; closed edges of dead sources cannot flip."""
    smallest: Tensor | None = None
    for stage, raw_BE in gates.raw.items():
        topology = gates.table.stages[stage].topology
        live_BE = live_vertices(gates.weights[stage] != 0, topology)[:, list(topology.sources)] > 0
        margin_B = (raw_BE - gates.thresholds[stage].to(raw_BE.dtype)).abs().masked_fill(~live_BE, torch.inf).amin(1)
        smallest = margin_B if smallest is None else torch.minimum(smallest, margin_B)
    return [] if smallest is None else smallest.tolist()
