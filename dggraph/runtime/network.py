"""The converted network: a module that runs the lowered graph and knows where it came from."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from inspect import get_annotations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dggraph.compiler.cutting import Program, cut
from dggraph.compiler.discovery import FoundStage
from dggraph.compiler.hooks import drop_idle_calls_, hooked_blocks, hooked_layers, is_hooked, watch_
from dggraph.compiler.lowered import OWNED, LoweredModule
from dggraph.compiler.planning import StagePlan
from dggraph.errors import BackboneOnlyError, InputError
from dggraph.graph.ir import DynamicGraph
from dggraph.graph.schema import to_json
from dggraph.ops.aggregation import is_plain
from dggraph.ops.macs import MacsTable
from dggraph.runtime.budgets import BudgetCurve
from dggraph.runtime.execution import run_sparse
from dggraph.runtime.preprocessing import Preprocess
from dggraph.runtime.report import ConversionReport
from dggraph.runtime.shell import copy_shell, has, look_up, make_shell, refuse_baked

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

    It owns the backbone's modules, parameters and buffers under their original names, and the routing of each stage as `dg_<stage>`, before
    them. `lowered` owns the very same, so that whatever is assigned, deleted or loaded here is what runs.

    Attributes of the backbone are answered too, and methods of its class that only look (`get_classifier`); other methods of it would run or
    rebuild the static backbone and raise a BackboneOnlyError. A name of ours hides the same name of the backbone, which `lowered` still has.

    Attributes:
        executor: `auto` (default), `sparse` (skips the work an instance does not need) or `dense` (runs every block for all,
            closed edges masked). In training, with gradients, under compilers and exporters always dense.
    """

    graph: DynamicGraph
    """What may connect."""
    lowered: LoweredModule
    """The fx.GraphModule that runs; no child of this module, but a second owner of its children."""
    plan: tuple[StagePlan, ...]
    """Per stage, what a sparse executor needs."""
    report: ConversionReport
    """What conversion found."""
    macs_table: MacsTable
    """What its parts cost, in multiply-accumulates."""
    recipe: Recipe
    """What an archive keeps."""
    source: str | None
    """The MODEL name it was built from, or None for a bare module."""
    source_options: Mapping[str, int]
    """What the builder of that name was called with besides, for example {"num_classes": 10}."""
    preprocess: Preprocess | None
    """How images become its input, where known."""
    labels: tuple[str, ...] | None
    """Class names, where known."""
    budgets: BudgetCurve | None
    """What `calibrate` measured, or None."""
    _shell: nn.Module
    _executor: Executor
    _program: Program | None
    _collected: list[Gates] | None

    def __init__(
        self,
        lowered: LoweredModule,
        *,
        backbone: nn.Module,
        graph: DynamicGraph,
        plan: tuple[StagePlan, ...],
        report: ConversionReport,
        macs_table: MacsTable,
        recipe: Recipe,
    ) -> None:
        own, mode = vars(self), lowered.training  # past __setattr__: the backbone may have a child of any of these names
        own["lowered"] = lowered
        super().__init__()
        self.training = mode
        own.update(graph=graph, plan=plan, report=report, macs_table=macs_table, recipe=recipe)
        own.update(source=None, source_options={}, preprocess=None, labels=None, budgets=None)
        own.update(_executor="auto", _program=None, _collected=None)
        self._own(make_shell(backbone, lowered))

    def _own(self, shell: nn.Module) -> None:
        """Hold what `lowered` holds: the same objects, so that neither can have what the other has not."""
        vars(self).update({name: vars(self.lowered)[name] for name in OWNED}, _shell=shell)

    @property
    def training(self) -> bool:
        """One flag with `lowered`."""
        return self.lowered.training

    @training.setter
    def training(self, mode: bool) -> None:
        self.lowered.training = mode

    def train(self, mode: bool = True) -> "DynamicNetwork":
        """Set the mode of every module, as the backbone's own `train` does where its class has one (norms that it keeps in eval mode)."""
        own = type(self._shell).train
        if own is nn.Module.train:
            return super().train(mode)
        own(self._shell, mode)
        self.training = self._shell.training
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_shell" not in vars(self):
                raise
        found = look_up(self._shell, name)
        return self if found is self._shell else found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or hasattr(type(self), name):
            if isinstance(value, nn.Module):
                raise BackboneOnlyError(
                    f"every converted network has an attribute {name!r} that is no module. If a module of the backbone is called so, "
                    f"replace it by net.lowered.{name} = ..."
                )
            object.__setattr__(self, name, value)
            return
        refuse_baked(self._shell, name, self.lowered.graph)
        is_module_like = isinstance(value, nn.Module | nn.Parameter) or any(name in vars(self)[kind] for kind in OWNED)
        if is_module_like or name in vars(self) or not has(self._shell, name):
            super().__setattr__(name, value)
            if isinstance(value, nn.Module):
                watch_(self.lowered)
            return
        vars(self._shell)[name] = value
        if name in vars(self.lowered):  # a plain tensor, which the graph reads there
            vars(self.lowered)[name] = value

    def __delattr__(self, name: str) -> None:
        if name in vars(self._shell) and name not in vars(self):
            refuse_baked(self._shell, name, self.lowered.graph)
            del vars(self._shell)[name]
            return
        super().__delattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """As every module's, but a child of the backbone whose name is one of ours (`graph`, `labels`) is found too."""
        return self.lowered.get_submodule(target) if target else self

    def __deepcopy__(self, memo: dict[int, Any]) -> "DynamicNetwork":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin)["lowered"] = copy.deepcopy(self.lowered, memo)
        twin._own(copy_shell(self._shell, twin.lowered, memo))
        others = {name: value for name, value in vars(self).items() if name not in (*vars(twin), "_program")}
        vars(twin).update(copy.deepcopy(others, memo), _program=None)
        return twin

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        rename_old_keys_(state_dict, self, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def no_weight_decay(self) -> set[str]:
        """Parameters that must not decay: those that the backbone names, as timm's do, and all of the routers."""
        named: Iterable[str] = getattr(self._shell, "no_weight_decay", set)()
        routers = tuple(f"dg_{stage}." for stage in self.graph.stages)
        return {*named, *(name for name, _ in self.named_parameters() if name.startswith(routers))}

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
        if x.ndim == 5:
            raise InputError(
                f"{self.graph.name} takes images (B, {channels}, H, W), got {tuple(x.shape)}, as clips are. Fold their frames into the batch, "
                "x.transpose(1, 2).flatten(0, 1), and pool over time afterwards."
            )
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
        plan = self._plan_around_hooks() if is_hooked(self.lowered) else self.plan
        if self._program is None or self._program.code != self.lowered.code or self._program.plan != plan:
            self._program = cut(self.lowered, self.graph, plan)
        return run_sparse(self._program, self.lowered, self.graph, x)

    def _plan_around_hooks(self) -> tuple[StagePlan, ...]:
        """Hooks see whole batches; where work is to be skipped whatever it costs (`sparse`), those on single layers see the rows that run."""
        drop_idle_calls_(self.lowered)
        plan = hooked_blocks(self.lowered, self.plan)
        return plan if self._executor == "sparse" else hooked_layers(self.lowered, plan)


_OWN = get_annotations(DynamicNetwork)


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
    state = model.state_dict()
    is_routing = {key: key.startswith("dg_") for key in state}
    for key in sorted(is_routing, key=is_routing.__getitem__):  # routing last, as in digests of interrupted collections
        tensor = state[key]
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rename_old_keys_(state: dict[str, Any], net: DynamicNetwork, prefix: str = "") -> None:
    """Rename the keys of `net`, at `prefix`, as they were when the backbone's names stood behind `lowered.`. In place, in their order."""
    old = f"{prefix}lowered."
    if "lowered" in net._modules or not any(key.startswith(old) for key in state):  # a backbone may have a child of that name
        return
    renamed = {prefix + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}
    state.clear()
    state.update(renamed)


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
