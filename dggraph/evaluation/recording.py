"""Record what every instance did: its adjacency matrices, its path and its MACs; of an image also what its model said of it.

Outside the model, so training sees none of it.

Shape suffixes: B instances, E candidate edges of a stage, V vertices of a stage (v0, v1 .. vN, out).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from dggraph.errors import InputError
from dggraph.graph.atlas import Detected, FoundObject
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.ops.liveness import live_vertices
from dggraph.ops.macs import path_macs
from dggraph.detection.detectors import read_boxes
from dggraph.network.digests import digest_of, digest_state
from dggraph.network.execution import refuse_nan
from dggraph.system.modes import evaluating
from dggraph.network.network import DynamicNetwork, Gates, class_names, collecting_gates
from dggraph.network.outputs import join_outputs
from dggraph.models.preprocessing import preprocess_image


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
class Prediction:
    """The most probable class of an image."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a model said of one image, and the path on which its network came there."""

    path: ActivatedPath
    gates: Gates
    """On the CPU."""
    prediction: Prediction | None
    """Where the network is a classifier."""
    detected: Detected | None
    """Where it is the backbone of a detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A model that is shown one image at a time, and the network in it whose paths are noted. Made by `watch_network` and `watch_detector`."""

    name: str
    net: DynamicNetwork
    see: Callable[[Image.Image], Sight]
    """Runs an image by itself, in eval mode without gradients; modes are restored. Raises GateError where an edge weight is NaN."""
    identify: Callable[[], Mapping[str, str]]
    """What sights depend on, by name: the same for models that see the same."""
    is_detector: bool


def watch_network(net: DynamicNetwork) -> Watch:
    """Watch a converted network.

    Raises:
        InputError: it does not say how images become its input, or has no stages.
    """
    if net.preprocess is None:
        raise InputError("this network does not say how images become its input; give --input-size when converting it.")
    _require_stages(net)
    see, identify = partial(_see, net), partial(_identify, net)
    return Watch(name=net.graph.name, net=net, see=see, identify=identify, is_detector=False)


def as_watch(watched: DynamicNetwork | Watch) -> Watch:
    """A network watched; a watch as it is.

    Raises:
        InputError: as for `watch_network`.
    """
    return watch_network(watched) if isinstance(watched, DynamicNetwork) else watched


def watch_detector(model: nn.Module, net: DynamicNetwork, *, classes: Sequence[str], name: str) -> Watch:
    """Watch a detector and its backbone.

    Args:
        model: takes a list of images (3, H, W) in [0, 1], gives boxes, labels from 1 and scores of each, as torchvision's detectors do.
        net: its backbone, by `convert_backbone_`.
        classes: label k is `classes[k - 1]`.
        name: what to call it.

    Raises:
        InputError: the backbone has no stages; (when an image is seen) the backbone does not run once on it.
    """
    _require_stages(net)
    see = partial(_see_with_detector, model, net, tuple(classes))
    identify = partial(_identify_detector, model, net, tuple(classes))
    return Watch(name=name, net=net, see=see, identify=identify, is_detector=True)


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
    _require_stages(net)
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
    macs = path_macs({stage: weights_BE != 0 for stage, weights_BE in gates.weights.items()}, gates.table).long().tolist()
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


def _require_stages(net: DynamicNetwork) -> None:
    if not net.graph.stages:
        raise InputError("this network has no stages, so there are no paths to record.")


def _see(net: DynamicNetwork, image: Image.Image) -> Sight:
    assert net.preprocess is not None
    x = preprocess_image(image, net.preprocess)
    parameter = next((p for p in net.parameters() if p.is_floating_point()), x)
    with evaluating(net):
        output, gates = net(x.to(parameter.device, parameter.dtype), return_gates=True)
        (path,) = activated_paths(net.graph, gates)
    prediction = None
    if isinstance(output, Tensor) and output.ndim == 2:
        best, index = output.float().softmax(1)[0].max(0)
        label = class_names(net, output.shape[1])[int(index)]
        prediction = Prediction(label=label, index=int(index), probability=float(best))
    return Sight(path=path, gates=_on_cpu(gates), prediction=prediction, detected=None)


def _see_with_detector(model: nn.Module, net: DynamicNetwork, classes: tuple[str, ...], image: Image.Image) -> Sight:
    pixels = functional.convert_image_dtype(functional.pil_to_tensor(image.convert("RGB")), torch.float32)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), pixels)
    with evaluating(model):
        with collecting_gates(net) as collected:
            (output,) = model([pixels.to(parameter.device, parameter.dtype)])
        if len(collected) != 1:
            raise InputError(f"this detector runs its backbone {len(collected)} times an image, so there is no one path to record.")
        (path,) = activated_paths(net.graph, collected[0])
    objects = tuple(
        FoundObject(corners=corners, label=label, name=classes[label], score=score) for corners, label, score in read_boxes(output)
    )
    return Sight(path=path, gates=_on_cpu(collected[0]), prediction=None, detected=Detected(size=image.size, objects=objects))


def _on_cpu(gates: Gates) -> Gates:
    weights, raw, thresholds = ({stage: one.cpu() for stage, one in part.items()} for part in gates[:3])
    return Gates(weights, raw, thresholds, gates.table)


def _identify(net: DynamicNetwork) -> dict[str, str]:
    settings = {"preprocess": net.preprocess, "labels": net.labels, "gate": net.recipe.gate, "executor": net.executor}
    return {"network": digest_of(net), "network's settings": repr(settings)}


def _identify_detector(model: nn.Module, net: DynamicNetwork, classes: tuple[str, ...]) -> dict[str, str]:
    return _identify(net) | {"detector": digest_state(repr((classes, model)), model)}


def _margins(gates: Gates) -> list[float]:
    """Per instance the smallest |weight - threshold| over edges whose source is live; closed edges of dead sources cannot flip."""
    smallest: Tensor | None = None
    for stage, raw_BE in gates.raw.items():
        layout = gates.table.stages[stage].layout
        live_BE = live_vertices(gates.weights[stage] != 0, layout)[:, list(layout.sources)] > 0
        margin_B = (raw_BE - gates.thresholds[stage].to(raw_BE.dtype)).abs().masked_fill(~live_BE, torch.inf).amin(1)
        smallest = margin_B if smallest is None else torch.minimum(smallest, margin_B)
    return [] if smallest is None else smallest.tolist()
