"""The converted network: a module that runs the lowered graph and knows where it came from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dggraph.compiler.cutting import Program, cut
from dggraph.compiler.discovery import FoundStage
from dggraph.compiler.lowering import LoweredModule
from dggraph.compiler.planning import StagePlan
from dggraph.errors import InputError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.schema import to_json
from dggraph.ops.aggregation import is_plain
from dggraph.ops.macs import MacsTable
from dggraph.runtime.budgets import BudgetCurve
from dggraph.runtime.execution import run_sparse
from dggraph.runtime.preprocessing import Preprocess
from dggraph.runtime.report import ConversionReport

Executor = Literal["auto", "sparse", "dense"]
EXECUTORS: tuple[Executor, ...] = ("auto", "sparse", "dense")


class Gates(NamedTuple):
    """The edge weights of one forward pass, per stage, shape (B, E) in the order of `DynamicGraph.edges`."""

    weights: dict[str, Tensor]
    """What aggregation used; 0 where an edge is inactive. Carries the gradient."""
    raw: dict[str, Tensor]
    """Before the threshold and liveness; what it says of edges that leave a dead node means nothing."""
    thresholds: dict[str, Tensor]
    """Per stage, 0-d."""
    table: MacsTable
    """What the network's parts cost, for a budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an archive must keep to lower the same trace again."""

    fingerprint: str
    found: tuple[FoundStage, ...]
    static: tuple[tuple[str, int, str], ...]
    """(module path, MACs, reason) of what belongs to no stage."""
    kept_because: tuple[str, ...]
    """Per stage, why its residuals are kept; empty where they are lifted."""
    router: str
    gate: str
    leaves: tuple[str, ...]
    """Classes of the backbone's modules that the caller kept as one call."""
    input_shape: tuple[int, ...]
    """Shape of one example instance."""
    dtype: str
    """Of the example, for example `float32`."""


class DynamicNetwork(nn.Module):
    """A backbone whose stages are wired per instance. Made by `convert` or `load`.

    Attributes:
        graph: what may connect.
        lowered: the fx.GraphModule that runs; it holds the backbone's weights under their original names.
        plan: per stage, what a sparse executor needs.
        report: what conversion found.
        macs_table: what its parts cost, in multiply-accumulates.
        recipe: what an archive keeps.
        executor: `auto` (default), `sparse` (skips the work an instance does not need) or `dense` (runs every block for all,
            closed edges masked). In training, with gradients, under compilers and exporters always dense.
        source: the MODEL name it was built from, or None for a bare module.
        source_options: what the builder of that name was called with besides, for example {"num_classes": 10}.
        preprocess: how images become its input, where known.
        labels: class names, where known.
        budgets: what `calibrate` measured, or None.
    """

    def __init__(
        self,
        lowered: LoweredModule,
        *,
        graph: DynamicGraph,
        plan: tuple[StagePlan, ...],
        report: ConversionReport,
        macs_table: MacsTable,
        recipe: Recipe,
    ) -> None:
        super().__init__()
        self.lowered = lowered
        self.graph = graph
        self.plan = plan
        self.report = report
        self.macs_table = macs_table
        self.recipe = recipe
        self.source: str | None = None
        self.source_options: Mapping[str, int] = {}
        self.preprocess: Preprocess | None = None
        self.labels: tuple[str, ...] | None = None
        self.budgets: BudgetCurve | None = None
        self._executor: Executor = "auto"
        self._program: Program | None = None
        self._collected: list[Gates] | None = None

    @property
    def executor(self) -> Executor:
        """How it runs in eval mode without gradients."""
        return self._executor

    @executor.setter
    def executor(self, name: Executor) -> None:
        if name not in EXECUTORS:
            raise InputError(f"executor={name!r} is not one of {', '.join(EXECUTORS)}.")
        self._executor = name

    def set_threshold(self, threshold: float) -> None:
        """Drop edges at or below `threshold` from now on, in all stages. From 0 up to, but not, 1."""
        if not 0 <= threshold < 1:
            raise InputError(f"threshold={threshold} is outside [0, 1); static edges weigh 1 and must stay open.")
        for stage in self.graph.stages:
            self.lowered.get_buffer(f"dg_{stage}.threshold").fill_(threshold)

    def set_temperature(self, temperature: float) -> None:
        """Divide logits by `temperature` from now on, in every gate that has one (ours do): below 1 decisions become sharper.

        Raises:
            InputError: `temperature` is not positive, or no gate has one.
        """
        buffers = [buffer for stage in self.graph.stages for buffer in self._temperatures(stage)]
        if not temperature > 0 or not buffers:
            raise InputError(f"temperature={temperature}: needs a positive number, and gates with a `temperature` buffer.")
        for buffer in buffers:
            buffer.fill_(temperature)

    def _temperatures(self, stage: str) -> list[Tensor]:
        owner = self.lowered.get_submodule(f"dg_{stage}")
        return [buffer for name, buffer in owner.named_buffers() if name.endswith(".temperature")]

    def set_budget(self, target: float) -> None:
        """Set the threshold that `calibrate` found to keep `target` of the static network's MACs, on average over its images.

        Raises:
            InputError: nothing was calibrated, or `target` is outside what was measured.
        """
        if self.budgets is None:
            raise InputError("no budgets are known for this network; run dggraph.calibrate(net, held_out_batches) first.")
        self.set_threshold(self.budgets.at(target).threshold)

    def forward(self, x: Tensor, *, return_gates: bool = False) -> Any:
        """Run the backbone along each instance's own path.

        Args:
            x: (B, C, H, W).
            return_gates: also return the `Gates` of this pass.

        Raises:
            InputError: `x` is no image batch with the backbone's number of channels, or of a type that its weights cannot be used with.
        """
        if not isinstance(x, Tensor):
            raise InputError(f"x must be a tensor of images (B, C, H, W), not {type(x).__name__}.")
        channels = self.recipe.input_shape[0]
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"{self.graph.name} takes a batch of images (B, {channels}, H, W), got {tuple(x.shape)}. "
                "Add the batch axis with x[None], or convert the channels."
            )
        try:
            output, gates = self._run_sparse(x) if self._is_sparse(x) else self.lowered(x)
        except RuntimeError as error:
            dtype = next((p.dtype for p in self.lowered.parameters() if p.is_floating_point()), x.dtype)
            if x.dtype == dtype:
                raise
            raise InputError(
                f"{self.graph.name} takes {dtype}, got {x.dtype}: {error}. Convert the images with x.to({dtype})."
            ) from error
        if not return_gates and self._collected is None:
            return output
        thresholds = {stage: self.lowered.get_buffer(f"dg_{stage}.threshold") for stage in gates}
        named = Gates({k: v[0] for k, v in gates.items()}, {k: v[1] for k, v in gates.items()}, thresholds, self.macs_table)
        if self._collected is not None:
            self._collected.append(named)
        return (output, named) if return_gates else output

    def _is_sparse(self, x: Tensor) -> bool:
        is_dense = self.training or torch.is_grad_enabled() or is_plain() or x.device.type == "meta"
        return self._executor != "dense" and not is_dense

    def _run_sparse(self, x: Tensor) -> tuple[Any, dict[str, Any]]:
        if self._program is None or self._program.code != self.lowered.code:
            self._program = cut(self.lowered, self.graph, self.plan)
        return run_sparse(self._program, self.lowered, self.graph, x)


def static_weights(graph: DynamicGraph) -> dict[str, Tensor]:
    """Per stage (E,): 1 for the edges the backbone had, else 0."""
    return {stage: torch.tensor([float(edge.is_static) for edge in graph.edges(stage)], device="cpu") for stage in graph.stages}


def decided_edges(net: DynamicNetwork, stage: str) -> dict[int, list[int]]:
    """Per vertex of `stage` with a router: the places, in the stage's edge order, of the edges that it decides."""
    layout, (plan,) = net.macs_table.stages[stage].layout, (one for one in net.plan if one.name == stage)
    if plan.scope == "stage":
        return {0: list(range(len(layout.sources)))}
    return dict(enumerate(layout.outgoing()[:-1]))


def digest_of(net: DynamicNetwork) -> str:
    """Of what may connect and of every weight and buffer, to the bit."""
    return digest_state(to_json(net.graph), net.lowered)


def digest_state(description: str, model: nn.Module) -> str:
    """Of `description` and of every weight and buffer of `model`, to the bit; one tensor is copied at a time."""
    digest = blake2b(description.encode(), digest_size=16)
    for key, tensor in model.state_dict().items():
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def class_names(net: DynamicNetwork, num_outputs: int) -> tuple[str, ...]:
    """A name for each output: the network's labels where they fit, else `class 0` and so on."""
    if net.labels is not None and len(net.labels) == num_outputs:
        return net.labels
    return tuple(f"class {index}" for index in range(num_outputs))


def dynamic_part(model: nn.Module) -> DynamicNetwork | None:
    """The network in `model`, which may be one itself; None in a static one."""
    return next((module for module in model.modules() if isinstance(module, DynamicNetwork)), None)


@contextmanager
def collecting_gates(net: DynamicNetwork) -> Iterator[list[Gates]]:
    """A list of the `Gates` of each pass within this context, for a network inside another module, whose call returns something else."""
    before, collected = net._collected, list[Gates]()
    net._collected = collected
    try:
        yield collected
    finally:
        net._collected = before


@contextmanager
def pinned_gates(net: DynamicNetwork, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within this context the gates of the named stages give `weights`, (E,) or (B, E), whatever their routers say.

    Gates see the whole batch under every executor, so that a row of `weights` always belongs to the same instance.
    """
    handles = []
    for stage, pinned in weights.items():
        owner = net.lowered.get_submodule(f"dg_{stage}")
        for index, places in decided_edges(net, stage).items():

            def hook(_module: nn.Module, _args: Any, row_BE: Tensor, values: Tensor = pinned[..., places]) -> Tensor:
                return values.to(row_BE).expand_as(row_BE)

            handles.append(owner.get_submodule(f"gate_{index}").register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
