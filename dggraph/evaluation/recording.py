"""Recording of every instance's adjacency matrices, path and MACs, and of an image's prediction.

It sits outside the model, so that training is not affected.

Shape suffixes: B instances, E candidate edges of a stage, V vertices of a stage (v0, v1 .. vN,
out).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dggraph.errors import InputError
from dggraph.graph.detection import Detected
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.models.origins import MARK, RANDOM, UNKNOWN
from dggraph.models.preprocessing import Picturable, require_preprocess
from dggraph.network.decisions import refuse_nan
from dggraph.network.digests import digest_of
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork, class_names
from dggraph.network.outputs import join_outputs
from dggraph.network.requirements import require_converted
from dggraph.ops.liveness import live_vertices
from dggraph.system.devices import first_weight
from dggraph.system.modes import evaluating
from dggraph.views.html_table import html_table

NUM_CLASSES = 5

ImageList = list[Picturable] | tuple[Picturable, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """The result of `record`, in input order. Notebooks show it as a table with a row per instance.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> recording = dggraph.record(net, torch.rand(2, 3, 32, 32))
        >>> len(recording.paths), recording.adjacency["layer1"].shape
        (2, torch.Size([2, 5, 5]))
    """

    output: Any
    """The backbone's output for the complete batch."""
    adjacency: dict[str, Tensor]
    """For each stage (B, V, V): row = source, column = target, 0 where an edge is inactive."""
    paths: tuple[ActivatedPath, ...]
    """One path per instance."""
    macs: Tensor
    """(B,) int64: MACs of each instance's path, routers and aggregation included."""
    weights_origin: str = UNKNOWN
    """Where the network's weights come from; of `random` ones nothing here means anything."""

    def _repr_html_(self) -> str:
        rows = [
            (
                index,
                f"{path.macs:,}",
                sum(weight != 0 for weights in path.weights.values() for weight in weights),
                f"{path.margin:.3g}",
            )
            for index, path in enumerate(self.paths)
        ]
        caption = MARK if self.weights_origin == RANDOM else ""
        return html_table(("instance", "MACs", "active edges", "margin"), rows, caption=caption)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """The probability of one class."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The prediction of a model for one image, and the path of the image through its network."""

    path: ActivatedPath
    gates: Gates
    """On the CPU."""
    classes: tuple[ClassScore, ...]
    """Up to five classes, the most probable first; empty if the network is not a classifier."""
    detected: Detected | None
    """The objects found, if the network is the backbone of a detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A model that takes one image at a time, and the network in it whose paths are recorded."""

    name: str
    net: DynamicNetwork
    predict: Callable[[Image.Image], Prediction]
    """Runs a single image in eval mode without gradients; modes are restored.

    Raises a GateError if an edge weight is NaN.
    """
    identify: Callable[[], Mapping[str, str]]
    """Returns the facts that predictions depend on, by name."""
    is_detector: bool


def make_predictor(net: DynamicNetwork) -> Predictor:
    """Return a predictor of a converted network.

    Raises:
        InputError: the network does not say how images become its input, or has no stages.

    Example:
        >>> import dggraph
        >>> from PIL import Image
        >>> predictor = dggraph.evaluation.make_predictor(dggraph.convert("dggraph:resnet20_8"))
        >>> len(predictor.predict(Image.new("RGB", (40, 40))).classes)
        5
    """
    require_preprocess(net.preprocess)
    require_stages(net)
    predict, identify = partial(_predict, net), partial(identify_network, net)
    return Predictor(
        name=net.graph.name, net=net, predict=predict, identify=identify, is_detector=False
    )


def as_predictor(watched: DynamicNetwork | Predictor) -> Predictor:
    """Return the predictor of a network; return a predictor unchanged.

    Raises:
        InputError: as for `make_predictor`.
    """
    return make_predictor(watched) if isinstance(watched, DynamicNetwork) else watched


def record(
    net: DynamicNetwork, x: Tensor | Picturable | ImageList, *, batch_size: int = 1
) -> Recording:
    """Run `x` through `net` in eval mode without gradients and record every instance's path.

    Args:
        net: a converted network; its mode is restored.
        x: a batch (B, C, H, W); or an image or a list of images, each a path, a PIL image, a
            uint8 array (H, W, 3) or a tensor (3, H, W), which `net.preprocess` preprocesses.
        batch_size: instances per forward pass; 1 by default, because an edge whose weight is at the
            threshold may differ in another batch.

    Raises:
        InputError: `x` is not an image batch, or `batch_size` is not positive.
        GateError: an edge weight is NaN; names stage, edge and instance.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> recording = dggraph.record(net, torch.rand(2, 3, 32, 32))
        >>> [path.macs == int(macs) for path, macs in zip(recording.paths, recording.macs)]
        [True, True]
    """
    require_converted(net, "record")
    require_stages(net)
    if not isinstance(x, Tensor):
        x = _batch_of(net, x)
    if x.ndim != 4 or batch_size < 1:
        raise InputError(
            "record needs a batch (B, C, H, W) and a positive batch_size, but got shape"
            f" {tuple(x.shape)} and batch_size={batch_size}."
        )
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
        parts={stage: torch.cat([part.parts[stage] for part in parts]) for stage in parts[0].parts},
    )
    paths = activated_paths(net.graph, gates)
    adjacency = {stage: gates.adjacency(stage) for stage in stages}
    macs = torch.tensor([path.macs for path in paths], dtype=torch.int64, device=x.device)
    return Recording(join_outputs(outputs), adjacency, paths, macs, net.weights_origin)


def activated_paths(graph: DynamicGraph, gates: Gates) -> tuple[ActivatedPath, ...]:
    """Return the path of every instance of a batch.

    Args:
        graph: the network's graph.
        gates: the gates of a forward pass in eval mode.

    Raises:
        GateError: an edge weight is NaN; names stage, edge and instance.
    """
    for stage, raw_BE in gates.raw.items():
        refuse_nan(graph, stage, raw_BE)
    macs = gates.macs().long().tolist()
    margins, spreads = _margins(gates), _spreads(gates)
    lists = {stage: gates.mean_weights(stage).tolist() for stage in gates.weights}
    return tuple(
        ActivatedPath(
            weights={stage: tuple(weights[index]) for stage, weights in lists.items()},
            macs=macs[index],
            margin=margins[index],
            spread=spreads[index],
        )
        for index in range(len(macs))
    )


def _batch_of(net: DynamicNetwork, images: Picturable | ImageList) -> Tensor:
    preprocess = require_preprocess(net.preprocess)
    several = images if isinstance(images, list | tuple) else [images]
    if not several:
        raise InputError("there are no images to record: the list is empty.")
    if any(isinstance(one, Tensor) and one.ndim == 4 for one in several):
        raise InputError(
            "record takes a batch (B, C, H, W) by itself, and a list of images (3, H, W). Give"
            " torch.cat(batches), or call it for each batch."
        )
    x = torch.cat([preprocess(image) for image in several])
    return x.to(first_weight(net))


def require_stages(net: DynamicNetwork) -> None:
    """Reject a network without paths.

    Raises:
        InputError: it has no stages.
    """
    if not net.graph.stages:
        raise InputError("this network has no stages, so there are no paths to record.")


def _predict(net: DynamicNetwork, image: Image.Image) -> Prediction:
    with evaluating(net):
        output, gates = net(_batch_of(net, image), return_gates=True)
        (path,) = activated_paths(net.graph, gates)
    classes = _most_probable(net, output) if isinstance(output, Tensor) and output.ndim == 2 else ()
    return Prediction(path=path, gates=on_cpu(gates), classes=classes, detected=None)


def _most_probable(net: DynamicNetwork, logits_1K: Tensor) -> tuple[ClassScore, ...]:
    names = class_names(net, logits_1K.shape[1])
    probabilities, indices = logits_1K.float().softmax(1)[0].sort(descending=True, stable=True)
    pairs = zip(indices[:NUM_CLASSES].tolist(), probabilities[:NUM_CLASSES].tolist(), strict=True)
    return tuple(
        ClassScore(label=names[index], index=index, probability=probability)
        for index, probability in pairs
    )


def on_cpu(gates: Gates) -> Gates:
    """Return copies of the gates on the CPU, which outlive the forward pass."""
    weights, raw, thresholds, parts = (
        {stage: one.cpu() for stage, one in part.items()}
        for part in (gates.weights, gates.raw, gates.thresholds, gates.parts)
    )
    return Gates(weights, raw, thresholds, gates.table, parts)


def identify_network(net: DynamicNetwork) -> dict[str, str]:
    """Return the facts that the network's predictions depend on, by name."""
    settings = {
        "preprocess": net.preprocess,
        "labels": net.labels,
        "gate": net.blueprint.gate,
        "executor": net.executor,
    }
    return {"network": digest_of(net), "network's settings": repr(settings)}


def _margins(gates: Gates) -> list[float]:
    """Return the smallest |weight - threshold| of each instance, over edges with a live source.

    Edges of dead sources are closed at any threshold.
    """
    smallest: Tensor | None = None
    for stage, raw_BE in gates.raw.items():
        topology = gates.table.stages[stage].topology
        live_BE = live_vertices(gates.weights[stage] != 0, topology)[:, list(topology.sources)] > 0
        margin_B = (
            (raw_BE - gates.thresholds[stage].to(raw_BE.dtype))
            .abs()
            .masked_fill(~live_BE, torch.inf)
            .amin(1)
        )
        smallest = margin_B if smallest is None else torch.minimum(smallest, margin_B)
    return [] if smallest is None else smallest.tolist()


def _spreads(gates: Gates) -> list[float]:
    """Return `ActivatedPath.spread` of each instance."""
    num_active_B = torch.cat(list(gates.open.values()), 1).sum(1)
    total_B = torch.zeros_like(num_active_B, dtype=torch.float64)
    for parts_BEP in gates.parts.values():
        total_B = total_B + parts_BEP.double().flatten(2).std(2, correction=0).sum(1)
    spreads: list[float] = (total_B / num_active_B.clamp_min(1)).tolist()
    return spreads
