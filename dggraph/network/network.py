"""The converted network: a module that runs the lowered graph, with a description of its parts."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

import dggraph.views.drawing  # noqa: F401  notebooks draw the graph of every network
from dggraph.compiler.hooked_plan import hooked_blocks, hooked_layers
from dggraph.compiler.hooks import drop_idle_calls_, is_hooked
from dggraph.compiler.inlining import Inliner
from dggraph.compiler.lowered import LoweredModule, routing_name, routing_of, weight_dtype
from dggraph.compiler.partition import Program, cut
from dggraph.compiler.planning import StagePlan, uses_batch_statistics
from dggraph.errors import BackboneOnlyError, InputError
from dggraph.graph.ir import DynamicGraph
from dggraph.models.preprocessing import Preprocess
from dggraph.network.blueprint import Blueprint
from dggraph.network.budgets import BudgetCurve
from dggraph.network.execution import run_sparse
from dggraph.network.gates import Gates
from dggraph.network.layer_groups import automatic, with_routers
from dggraph.network.publishing import push_to_hub, save_pretrained
from dggraph.network.report import ConversionReport
from dggraph.network.routing_summary import routing_summary
from dggraph.network.shell import only_images
from dggraph.network.snapshot import Snapshot
from dggraph.network.standin import StandIn
from dggraph.ops.aggregation import is_plain
from dggraph.ops.macs import MacsTable
from dggraph.ops.recompute import checkpoint_aggregation
from dggraph.ops.stage_plans import KeptPlans
from dggraph.system.torch_private import has_values, is_jit_traced

Executor = Literal["auto", "sparse", "dense"]


EXECUTORS: tuple[Executor, ...] = ("auto", "sparse", "dense")


class DynamicNetwork(StandIn):
    """A backbone whose stages are wired per image, made by `convert` or `load`.

    Modules, parameters, buffers and attributes keep their names from the backbone, see `StandIn`.

    Attributes:
        executor: `auto` (default), `sparse` (skips the work that an image does not need) or `dense`
            (runs every block for all images and masks closed edges). Skipping has no gradients. In
            train mode, with gradients on, under compilers and exporters, and if norms use the
            statistics of the batch, the dense form therefore runs under all three settings, also
            under an explicit `sparse`; `last_run` and the network's repr report this and why.
            Otherwise `auto` and `sparse` run the same, with one exception: hooks on single layers
            see full batches under `auto`, and only the rows that run under `sparse`.
        recompute: Whether the backward pass computes the sums in front of blocks again instead of
            keeping them, False by default. Gradients are the same to the bit. Compilers plan their
            own recomputation and ignore it.

    Example:
        >>> import dggraph, torch
        >>> net = dggraph.convert("dggraph:resnet20_8")
        >>> net.eval()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    graph: DynamicGraph
    """Nodes and candidate edges."""
    plan: tuple[StagePlan, ...]
    """Per stage, the information that the sparse executor needs."""
    report: ConversionReport
    """The results of the conversion."""
    macs_table: MacsTable
    """The cost of the parts, in multiply-accumulates."""
    blueprint: Blueprint
    """The parts of the conversion that an archive keeps."""
    converted: Snapshot
    """The structure of the network at its conversion."""
    source: str | None
    """The MODEL name that it was built from, or None for a bare module."""
    source_options: Mapping[str, int]
    """Options that its backbone was built with, for example {"num_classes": 10}."""
    preprocess: Preprocess | None
    """How images become inputs, if known."""
    labels: tuple[str, ...] | None
    """Class names, if known."""
    budgets: BudgetCurve | None
    """The curve that `calibrate` measured, or None."""
    recompute: bool
    _executor: Executor
    _last_run: str
    _inliner: Inliner | None
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
        blueprint: Blueprint,
        converted: Snapshot,
    ) -> None:
        super().__init__(lowered, backbone)
        self.graph, self.plan, self.report = graph, plan, report
        self.macs_table, self.blueprint, self.converted = macs_table, blueprint, converted
        self.source, self.source_options = None, {}
        self.preprocess = self.labels = self.budgets = None
        self._executor, self._last_run = "auto", ""
        self._inliner, self._collected, self.recompute = None, None, False

    save_pretrained = save_pretrained
    push_to_hub = push_to_hub

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay.

        These are the names that the backbone returns, as timm's do, and all parameters of the
        routers.
        """
        named: Iterable[str] = getattr(self._shell, "no_weight_decay", set)()
        routers = tuple(f"{routing_name(stage)}." for stage in self.graph.stages)
        return {*named, *(name for name, _ in self.named_parameters() if name.startswith(routers))}

    @property
    def group_matcher(self) -> Callable[..., Any]:
        """Layer-wise groups of timm, see `layer_groups`; only for backbones from timm."""
        own = getattr(self._shell, "group_matcher", None)
        if own is None and getattr(self._shell, "pretrained_cfg", None) is None:
            raise AttributeError("group_matcher")
        return lambda coarse=False: (
            with_routers(own(coarse=coarse), self._shell) if own else automatic(self._shell)
        )

    @property
    def executor(self) -> Executor:
        """The executor in eval mode without gradients; `last_run` reports which one was used."""
        return self._executor

    @executor.setter
    def executor(self, name: Executor) -> None:
        if name not in EXECUTORS:
            raise InputError(f"executor={name!r} is not one of {', '.join(EXECUTORS)}.")
        self._executor = name

    @property
    def last_run(self) -> str:
        """The executor of the last forward pass, for example `dense: gradients are on`.

        Passes under compilers do not count; those in the checks of `convert` do. The reason is
        given if the pass did not use the requested executor.
        """
        return self._last_run

    def extra_repr(self) -> str:
        """Return the executor, the last run and the origin of the weights, for the repr."""
        ran = f", last run {self._last_run}" if self._last_run else ""
        return f"executor={self._executor!r}{ran}, weights {self.weights_origin}"

    def set_threshold(self, threshold: float) -> None:
        """Drop edges with weights at or below `threshold` from now on, in all stages.

        Raises:
            InputError: `threshold` is not in [0, 1).
        """
        if not 0 <= threshold < 1:
            raise InputError(
                f"threshold={threshold} is outside [0, 1); static edges weigh 1 and must stay open."
            )
        for stage in self.graph.stages:
            routing_of(self.lowered, stage).threshold.fill_(threshold)

    def set_temperature(self, temperature: float) -> None:
        """Divide logits by `temperature` from now on, in every gate that has a temperature.

        The built-in gates have one. Below 1, decisions become sharper.

        Raises:
            InputError: `temperature` is not positive, or no gate has one.
        """
        buffers = [buffer for stage in self.graph.stages for buffer in self._temperatures(stage)]
        if not temperature > 0 or not buffers:
            raise InputError(
                f"temperature={temperature} cannot be set. Use a positive number, and gates with a"
                " `temperature` buffer."
            )
        for buffer in buffers:
            buffer.fill_(temperature)

    def _temperatures(self, stage: str) -> list[Tensor]:
        return [
            buffer
            for name, buffer in routing_of(self.lowered, stage).named_buffers()
            if name.endswith(".temperature")
        ]

    def set_budget(self, target: float) -> None:
        """Set the threshold at which `calibrate` measured a mean MACs ratio of `target`.

        Raises:
            InputError: The network is not calibrated, or `target` is outside the measured range.
        """
        if self.budgets is None:
            raise InputError(
                "no budgets are known for this network. Run dggraph.calibrate(net,"
                " held_out_batches) first."
            )
        self.set_threshold(self.budgets.at(target).threshold)

    def print_routing_summary(self, x: Tensor | None = None) -> None:
        """Print what is routed and where most of the work is.

        With images, also print the share of open edges and the MACs ratio of their paths.

        Args:
            x: Images (B, C, H, W), run in the current mode of the network.

        Example:
            >>> import dggraph
            >>> dggraph.convert("resnet18").print_routing_summary()
            ResNet: 4 stages, 5 routed blocks, 15 candidate edges, 9 of them the backbone's own
            MACs: 1.81G, 63.7% in routed blocks; most of them in layer1: 25.5%
            parameters: 11,692,599, of which routers 0.03%; weights: random
        """
        print(routing_summary(self, x))

    def forward(self, x: Tensor | None = None, *, return_gates: bool = False, **named: Any) -> Any:
        """Run the backbone along each image's own path.

        Args:
            x: (B, C, H, W).
            return_gates: Also return the `Gates` of this pass.
            named: The images under the backbone's name for them, such as `pixel_values`. Other
                arguments of the backbone must keep their defaults.

        Returns:
            The backbone's output, or with `return_gates` (output, gates).

        Raises:
            InputError: `x` is not an image batch with the backbone's number of channels, or its
                dtype does not fit the weights.
            StructureError: A module that the graph needs was removed, or its forward is not the
                traced one.
            BackboneOnlyError: The call is traced by fx or, in train mode, by `torch.jit.trace`; or
                a forward-mode derivative is requested.
        """
        if isinstance(x, fx.Proxy):
            raise BackboneOnlyError(
                "torch.fx cannot trace a converted network, which decides per image what runs. Its"
                " own graph is net.lowered.graph. Apply tools that trace (create_feature_extractor,"
                " quantisation) to the backbone, and convert the result."
            )
        if named or x is None:
            x = only_images(self._shell, x, named)
        if self.training and is_jit_traced():
            raise BackboneOnlyError(
                "torch.jit.trace does not keep the gradients of routers, so it takes networks for"
                " inference only. Call net.eval() first; to train, trace the network afterwards."
            )
        if not isinstance(x, Tensor):
            raise InputError(f"x must be a tensor of images (B, C, H, W), not {type(x).__name__}.")
        channels = self.blueprint.input_shape[0]
        if x.ndim == 5:
            raise InputError(
                f"{self.graph.name} takes images (B, {channels}, H, W), got {tuple(x.shape)}, the"
                " shape of clips. Fold their frames into the batch, x.transpose(1, 2).flatten(0,"
                " 1), and pool over time afterwards."
            )
        wrong_shape = (
            f"{self.graph.name} takes a batch of images (B, {channels}, H, W), got"
            f" {tuple(x.shape)}. Add the batch axis with x[None], or convert the channels."
        )
        if x.ndim != 4:
            raise InputError(wrong_shape)
        try:
            wanted = return_gates or self._collected is not None
            output, gates = self.lowered(x) if is_plain() else self._run(x, {} if wanted else None)
        except RuntimeError as error:
            if "forward mode AD" in str(error):
                raise BackboneOnlyError(
                    "a converted network has no forward-mode derivatives (jvp, jacfwd, dual"
                    " tensors): its gates only define gradients for the backward pass. Use reverse"
                    " mode (vjp, jacrev, grad), or differentiate the backbone."
                ) from error
            if x.shape[1] != channels:  # unless the first layer was replaced by one that takes them
                raise InputError(wrong_shape) from error
            dtype = weight_dtype(self.lowered) or x.dtype
            if x.dtype == dtype:
                raise
            raise InputError(
                f"{self.graph.name} takes {dtype}, got {x.dtype}: {error}. Convert the images with"
                f" x.to({dtype})."
            ) from error
        if not wanted:
            return output
        thresholds = {stage: routing_of(self.lowered, stage).threshold for stage in gates}
        found = Gates(
            {stage: values[0] for stage, values in gates.items()},
            {stage: values[1] for stage, values in gates.items()},
            thresholds,
            self.macs_table,
            {stage: values[2] for stage, values in gates.items() if len(values) > 2},
        )
        if self._collected is not None:
            self._collected.append(found)
        return (output, found) if return_gates else output

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse `torch.jit.script`, which calls this method first."""
        raise BackboneOnlyError(
            "torch.jit.script cannot compile a converted network. Use torch.compile,"
            " dggraph.export, or torch.jit.trace(net.eval(), x)."
        )

    def _run(self, x: Tensor, gates: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Return the backbone's output and the gates of the pass.

        Skipping writes them to `gates`, and leaves them out if that is None.
        """
        self.refuse_changes()
        if self._executor == "dense":
            return self._run_dense(x)
        if self.training:
            return self._run_dense(x, "the network is in train mode")
        if torch.is_grad_enabled():
            return self._run_dense(x, "gradients are on")
        if not has_values(x):
            return self._run_dense(x, "the images have no values")
        plan = self._plan_around_hooks() if is_hooked(self.lowered) else self.plan
        inliner = self._inliner
        if (
            inliner is None
            or inliner.source.code != self.lowered.code
            or inliner.source.plan != plan
            or inliner.seen is not self._structure.seen
        ):
            program = cut(self.lowered, self.graph, plan)
            inliner = self._inliner = self._inliner_of(program)
        program = inliner.program(self.lowered)
        if program is inliner.source and uses_batch_statistics(self.lowered, program.norms):
            return self._run_dense(x, "a norm takes the statistics of the batch")
        self._last_run = "sparse"
        output = run_sparse(program, self.lowered, self.graph, x, gates)
        return output, gates or {}

    def forget_program(self) -> None:
        """Drop what is kept between passes: inlined blocks, and plans of patterns."""
        self._inliner = None

    def kept_plans(self) -> dict[str, KeptPlans]:
        """Return the number and bytes of the plans that each stage keeps between passes."""
        return self._inliner.source.kept_plans() if self._inliner else {}

    def _inliner_of(self, program: Program) -> Inliner:
        return Inliner(program, self._structure.seen)

    def _run_dense(self, x: Tensor, reason: str = "") -> tuple[Any, dict[str, Any]]:
        self._last_run = f"dense: {reason}" if reason else "dense"
        recomputing = self.recompute and torch.is_grad_enabled()
        with checkpoint_aggregation() if recomputing else nullcontext():
            result: tuple[Any, dict[str, Any]] = self.lowered(x)
        return result

    def _plan_around_hooks(self) -> tuple[StagePlan, ...]:
        """Return the plan for a network with hooks.

        Hooks see full batches. With `sparse`, which skips work at any price, hooks on single layers
        see only the rows that run.
        """
        drop_idle_calls_(self.lowered)
        plan = hooked_blocks(self.lowered, self.plan)
        return plan if self._executor == "sparse" else hooked_layers(self.lowered, plan)


def class_names(net: DynamicNetwork, num_outputs: int) -> tuple[str, ...]:
    """Return a name per output: the network's labels if they fit, else `class 0` and so on."""
    if net.labels is not None and len(net.labels) == num_outputs:
        return net.labels
    return tuple(f"class {index}" for index in range(num_outputs))


def dynamic_part(model: nn.Module) -> DynamicNetwork | None:
    """Return the first converted network in `model`, which may be `model` itself, or None."""
    return next((module for module in model.modules() if isinstance(module, DynamicNetwork)), None)
