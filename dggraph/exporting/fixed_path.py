"""One path of a network as a plain static network.

Edges of weight 1 become plain reads and sums, other weights constants, and closed edges and the
blocks that no open edge leads to or from disappear. What remains keeps its names.

Shape suffixes: B images, E edges, V vertices of a stage.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, fx

from dggraph.compiler.edge_writer import stage_topology
from dggraph.compiler.lowered import routing_of, weight_dtype
from dggraph.compiler.partition import as_modules_are
from dggraph.compiler.planning import EFFECT, StagePlan
from dggraph.compiler.surroundings import ordinary_surroundings
from dggraph.errors import InputError
from dggraph.exporting.comparison import check_images
from dggraph.exporting.plain_graphs import erase_idle_, module_of, plain_graph
from dggraph.graph.ir import ActivatedPath, DynamicGraph
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork
from dggraph.network.requirements import require_converted
from dggraph.ops.additive import add_gained, add_normed
from dggraph.ops.aggregation import concatenate
from dggraph.ops.granularity import close_parts, largest
from dggraph.ops.liveness import Topology, leads_to_out, live_vertices, settle
from dggraph.ops.pooling import normalised
from dggraph.ops.routing import ConstantRouter
from dggraph.system.devices import first_weight
from dggraph.system.modes import evaluating

Path = Literal["mean", "backbone"] | ActivatedPath | Mapping[str, Tensor]


def static(
    net: DynamicNetwork, path: Path = "mean", *, images: Tensor | None = None
) -> fx.GraphModule:
    """Return one path of `net` as a static network, with copies of the weights it needs.

    Its output is that of `net` on this path: to the bit where the weights are 0 and 1, else to
    rounding. State-dict keys are those of the backbone; blocks that never run have none. Sources of
    closed edges give nothing, and where no edge leads to the end of a stage, its rule for `out`
    holds. Hooks run on layers only: an `fx.GraphModule` does not call blocks and containers.

    Args:
        net: A converted network; it is not changed.
        path: `mean` for the mean weights of `images`; `backbone` for the backbone's own path; the
            path of an image, as `record` gives it; or for each stage weights (E,) in the order of
            `graph.edges`, or an adjacency matrix (V, V). An edge of weight 0 or less is closed.
        images: (B, C, H, W), for `mean`. A `constant` router needs none.

    Raises:
        InputError: `path` does not fit the graph, or `mean` has no images.
        ExportError: The graph of the backbone cannot be taken apart; the message says why.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> x = torch.rand(1, 3, 32, 32)
        >>> plain = dggraph.static(net, dggraph.record(net, x).paths[0])
        >>> torch.allclose(plain(x), net.eval()(x), atol=1e-5)
        True
    """
    require_converted(net, "static")
    with ordinary_surroundings(torch.device("cpu")):  # where the weights of edges are
        return _static(net, path, images)


def _static(net: DynamicNetwork, path: Path, images: Tensor | None) -> fx.GraphModule:
    weights = _weights_of(net, path, images)
    lowered = copy.deepcopy(net.lowered)
    graph, by_name = plain_graph(lowered)
    constants: dict[str, Tensor] = {}
    for stage in as_modules_are(lowered, net.plan):
        settled = _settled(net.graph, stage.name, weights[stage.name])
        writer = _PathWriter(
            graph=graph,
            wired=net.graph,
            stage=stage,
            settled=settled,
            dtype=weight_dtype(lowered) or torch.float32,
            has_additions=path != "backbone",
            constants=constants,
        )
        for vertex, block in enumerate(stage.blocks, start=1):
            if settled.runs[vertex]:
                writer.fold(vertex, by_name[block.input])
            else:  # what norms would note in training, for one, does not happen
                for name in block.fx_nodes:
                    by_name[name].meta.pop(EFFECT, None)
        writer.fold(len(stage.blocks) + 1, by_name[stage.output])
    erase_idle_(graph)
    return module_of(lowered, graph, constants)


@dataclass(frozen=True, slots=True)
class _Settled:
    """The weights of one path in one stage."""

    topology: Topology
    weights: list[float]
    """For each edge, 0 where it is closed or leads nowhere."""
    parts: Tensor | None
    """(E, ...) where edges have several weights."""
    runs: list[bool]
    """For each vertex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PathWriter:
    """Replaces the sums of one stage by those of its path."""

    graph: fx.Graph
    wired: DynamicGraph
    stage: StagePlan
    settled: _Settled
    dtype: torch.dtype
    """The features' own."""
    has_additions: bool
    """Whether `additive` sums add something."""
    constants: dict[str, Tensor]
    """Gets the weights of edges that have several."""

    def fold(self, vertex: int, total: fx.Node) -> None:
        """Replace `total`, which sums all features that may lead into `vertex`."""
        features: Any = total.args[0]
        place = self.settled.topology.incoming(vertex)
        with self.graph.inserting_before(total):
            opened = [
                (edge, feature)
                for edge, feature in zip(range(place.start, place.stop), features, strict=True)
                if self.settled.weights[edge] != 0
            ]
            if total.target is concatenate:
                new = self._joined(total, dict(opened), place, features[0])
            elif total.target is add_normed:
                new = self._added(total, opened)
            else:
                new = self._sum([self._scaled(edge, feature) for edge, feature in opened])
            is_written = (
                self.stage.blocks[vertex - 1].writes_input
                if vertex <= len(self.stage.blocks)
                else self.stage.writes_output
            )
            if is_written and new in features:
                new = self.graph.call_function(torch.clone, (new,))
        total.replace_all_uses_with(new)
        self.graph.erase_node(total)

    def _scaled(self, edge: int, feature: fx.Node) -> fx.Node:
        if self.settled.parts is not None:
            name = f"dg_{self.stage.name}_weight_{edge}"
            self.constants[name] = self.settled.parts[edge].to(self.dtype).clone()
            weight: Any = self.graph.create_node("get_attr", name)
        else:
            weight = torch.tensor(self.settled.weights[edge], dtype=self.dtype).item()
        return feature if weight == 1 else self.graph.call_function(torch.mul, (feature, weight))

    def _sum(self, terms: list[fx.Node]) -> fx.Node:
        return reduce(lambda one, other: self.graph.call_function(torch.add, (one, other)), terms)

    def _added(self, total: fx.Node, opened: list[tuple[int, fx.Node]]) -> fx.Node:
        _, _, gain, axis = total.args
        call = self.graph.call_function
        own = self._sum([feature for _, feature in opened])
        if not self.has_additions:
            return own
        added = [self._scaled(edge, call(normalised, (one, axis))) for edge, one in opened]
        return call(add_gained, (own, self._sum(added), gain, axis))

    def _joined(
        self, total: fx.Node, opened: dict[int, fx.Node], place: slice, like: fx.Node
    ) -> fx.Node:
        axis: Any = total.args[2]
        position = self.wired.stages[self.stage.name].channel_position
        operands = []
        for edge in range(place.start, place.stop):
            source = self.wired.nodes(self.stage.name)[self.settled.topology.sources[edge]]
            given = (like, source.shape[position], axis)
            operands.append(
                self._scaled(edge, opened[edge])
                if edge in opened
                else self.graph.call_function(no_features, given)
            )
        return self.graph.call_function(torch.cat, (operands, axis))


def no_features(like: Tensor, num_channels: int, channel_axis: int) -> Tensor:
    """Return zeros of the shape of `like`, with another number of channels."""
    shape = list(like.shape)
    shape[channel_axis] = num_channels
    return like.new_zeros(shape)


def _settled(graph: DynamicGraph, stage: str, given_E: Tensor) -> _Settled:
    topology = stage_topology(graph, stage)
    raw_BE = largest(given_E[None])
    closed = raw_BE.new_zeros(())
    weights_BE = settle(raw_BE, topology, closed, False)
    open_BE = weights_BE != 0
    runs_V = (live_vertices(open_BE, topology) & leads_to_out(open_BE, topology))[0]
    last = topology.num_vertices - 1
    if not open_BE[0, topology.incoming(last)].any():
        raise InputError(
            f"on this path no edge leads to the end of stage {stage!r}, so its features would be"
            " zeros. Open an edge to `out`."
        )
    is_used_E = runs_V[list(topology.sources)] & runs_V[list(topology.targets)]
    used_E = torch.where(is_used_E, weights_BE[0], 0.0)
    parts = close_parts(given_E[None], raw_BE, used_E[None], 0.0)[0] if given_E.ndim > 1 else None
    return _Settled(topology, used_E.tolist(), parts, runs_V.tolist())


def _weights_of(net: DynamicNetwork, path: Path, images: Tensor | None) -> dict[str, Tensor]:
    """Return the weights of each stage, (E,) or, with parts, (E, ...)."""
    if path == "mean":
        return _mean_weights(net, images)
    if path == "backbone":
        return static_weights(net.graph)
    if isinstance(path, str):
        raise InputError(
            f"path={path!r} is neither mean nor backbone. Give one of these, a recorded path, or"
            " weights for each stage."
        )
    if not isinstance(path, ActivatedPath | Mapping):
        raise InputError(
            f"path is of the type {type(path).__name__}. Give mean, backbone, one path, such as"
            " dggraph.record(net, x).paths[0], or weights for each stage."
        )
    given: Mapping[str, Any] = path.weights if isinstance(path, ActivatedPath) else path
    if set(given) != set(net.graph.stages):
        raise InputError(
            f"the path has weights for {', '.join(given) or 'no stage'}, and the network has the"
            f" stages {', '.join(net.graph.stages)}. Give each stage its weights."
        )
    return {stage: _of_edges(net.graph, stage, torch.as_tensor(given[stage])) for stage in given}


def _of_edges(graph: DynamicGraph, stage: str, given: Tensor) -> Tensor:
    """Return (E, ...) from weights in that form, or from an adjacency matrix (V, V)."""
    topology, given = stage_topology(graph, stage), given.detach().cpu()
    num_edges, size = len(topology.sources), topology.num_vertices
    if given.shape == (size, size):
        weights_E = given[list(topology.sources), list(topology.targets)]
        if weights_E.count_nonzero() != given.count_nonzero():
            raise InputError(
                f"the adjacency of stage {stage!r} has weights where there is no candidate edge."
                f" Rows are sources and columns targets, in the order {_names(graph, stage)}."
            )
        return weights_E.float() if not weights_E.is_floating_point() else weights_E
    if given.shape[:1] != (num_edges,):
        raise InputError(
            f"stage {stage!r} has {num_edges} edges and {size} vertices, got weights of shape"
            f" {tuple(given.shape)}. Give ({num_edges},) or ({size}, {size})."
        )
    return given.float() if not given.is_floating_point() else given


def _names(graph: DynamicGraph, stage: str) -> str:
    return ", ".join(node.name for node in graph.nodes(stage))


def _mean_weights(net: DynamicNetwork, images: Tensor | None) -> dict[str, Tensor]:
    """Return the mean over images of the weights that aggregation uses."""
    if images is None:
        routers = [
            router
            for stage in net.graph.stages
            for _, router, _ in routing_of(net.lowered, stage).deciders()
        ]
        if not all(isinstance(router, ConstantRouter) for router in routers):
            raise InputError(
                "the mean path is a mean over images, and none were given. Pass images=, or another"
                " path: backbone, or one that dggraph.record returned."
            )
        images = first_weight(net).new_zeros(1, *net.blueprint.input_shape)
    check_images(images, net.blueprint.input_shape[0])
    images = images.to(first_weight(net))
    with evaluating(net):
        sums: dict[str, Tensor] = {}
        for image in images:
            _, gates = net(image[None], return_gates=True)
            for stage in gates.weights:
                weights = gates.all_weights(stage)[0].double().cpu()
                sums[stage] = sums.get(stage, torch.zeros_like(weights)) + weights
    return {stage: (total / len(images)).float() for stage, total in sums.items()}
