"""The report of a conversion: stages, edges, MACs, and the static parts with reasons."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dggraph.compiler.answers import Assumption
from dggraph.compiler.planning import Aggregation, StagePlan
from dggraph.compiler.regions import Flow
from dggraph.compiler.stages import FoundStage
from dggraph.compiler.tracing import Opaque
from dggraph.graph.ir import DynamicGraph, Residual
from dggraph.network.blueprint import Blueprint
from dggraph.ops.granularity import Granularity
from dggraph.views.escaping import count
from dggraph.views.html_table import html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """The numbers of one stage."""

    name: str
    depth: int
    """Number of blocks, with the entry block if there is one."""
    num_blocks: int
    """Number of routed blocks, N."""
    num_edges: int
    residual: Residual
    kept_because: str
    """Why its residuals stay inside the blocks; empty if they are lifted."""
    shape: tuple[int, ...]
    macs: int
    """MACs of the entry block and the routed blocks."""
    routed_macs: int
    """MACs of the routed blocks, which an image may skip."""
    dense_because: str = ""
    """Why its blocks always run on full batches; empty if images can skip them."""
    granularity: Granularity = "edge"
    """How many weights its edges have."""
    aggregation: Aggregation = "sum"
    """How its nodes read their sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPart:
    """A part of the backbone outside every stage."""

    module_path: str
    macs: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """The stages of a converted network, and what stayed static and why.

    Notebooks show it as a table with one row per stage.
    """

    name: str
    stages: tuple[StageReport, ...]
    total_macs: int
    """MACs of the backbone for one image."""
    static: tuple[StaticPart, ...]
    frozen: tuple[str, ...]
    """Parameters without gradient, because the forward traced in eval mode does not read them.

    Auxiliary heads are an example.
    """
    opaque: tuple[Opaque, ...]
    """Classes and functions kept as a single call because they cannot be traced: where and why."""
    assumptions: tuple[Assumption, ...]
    """Branches that the backbone's Python code took for the example.

    A batch that would take another branch is refused.
    """
    checkpointed: tuple[str, ...]
    """Modules (empty: the backbone itself) whose gradient checkpointing was not converted.

    `net.checkpoint_aggregation` is not a replacement for it.
    """
    eval_only: tuple[str, ...]
    """Places where the backbone's forward depends on `self.training`.

    The network always takes the branch of eval mode there.
    """
    hooks: tuple[str, ...]
    """Modules (empty: the backbone itself) whose hooks were not converted.

    The network runs the parts of these modules one by one.
    """
    detached: tuple[str, ...] = ()
    """Attributes with tensors that an earlier forward computed; the copy has only their values."""
    branches: str = ""
    """What to call before converting, if branches of blocks can be fused into one convolution."""
    max_difference: float
    """max |static - lowered| at batch size 3, measured by the self-check."""

    @property
    def covered_macs(self) -> int:
        """MACs inside stages, including entry blocks."""
        return sum(stage.macs for stage in self.stages)

    @property
    def covered_fraction(self) -> float:
        """Fraction of the MACs inside stages, including entry blocks."""
        return self.covered_macs / self.total_macs if self.total_macs else 0.0

    @property
    def routed_fraction(self) -> float:
        """Fraction of the MACs in routed blocks, which is the most that routing can skip."""
        return (
            sum(stage.routed_macs for stage in self.stages) / self.total_macs
            if self.total_macs
            else 0.0
        )

    @property
    def num_blocks(self) -> int:
        """Number of routed blocks."""
        return sum(stage.num_blocks for stage in self.stages)

    @property
    def num_edges(self) -> int:
        """Number of candidate edges."""
        return sum(stage.num_edges for stage in self.stages)

    def _repr_html_(self) -> str:
        rows = [
            (
                stage.name,
                stage.num_blocks,
                stage.num_edges,
                stage.residual,
                f"{stage.routed_macs / max(self.total_macs, 1):.1%}",
                stage.dense_because or stage.kept_because,
            )
            for stage in self.stages
        ]
        caption = (
            f"{self.name}: {count(self.total_macs)} MACs, {self.routed_fraction:.1%} of them in"
            " routed blocks"
        )
        return html_table(
            ("stage", "routed blocks", "candidate edges", "residual", "MACs", "note"),
            rows,
            caption=caption,
        )


def report_conversion(
    flow: Flow, graph: DynamicGraph, blueprint: Blueprint, frozen: tuple[str, ...]
) -> ConversionReport:
    """Return the report of a lowered network before it is checked.

    `frozen` are the parameters that the network does not read.
    """
    traced = flow.trace
    dropped = {guard.args[2] for guard in flow.cache_guards}
    return ConversionReport(
        name=graph.name,
        stages=_report_stages(graph, blueprint.found, blueprint.kept_because),
        total_macs=sum(flow.profile.macs.values()),
        static=tuple(
            StaticPart(module_path=path, macs=macs, reason=reason)
            for path, macs, reason in blueprint.static
        ),
        frozen=frozen,
        opaque=traced.opaque,
        assumptions=tuple(one for one in traced.assumptions if one.place not in dropped),
        checkpointed=traced.checkpointed,
        eval_only=traced.eval_only,
        hooks=traced.hooks,
        max_difference=0.0,
    )


def note_checks(
    report: ConversionReport, plan: Sequence[StagePlan], *, max_difference: float
) -> ConversionReport:
    """Return `report` with the results of the self-checks.

    Args:
        report: The report before the checks.
        plan: Says which stages run on full batches, and why.
        max_difference: max |backbone - network| on the static path.
    """
    stages = tuple(
        replace(
            stage,
            dense_because=one.dense_only,
            granularity=one.granularity,
            aggregation=one.aggregation,
        )
        for stage, one in zip(report.stages, plan, strict=True)
    )
    return replace(report, stages=stages, max_difference=max_difference)


def _report_stages(
    graph: DynamicGraph, found: Sequence[FoundStage], kept_because: Sequence[str]
) -> tuple[StageReport, ...]:
    """Return one `StageReport` per stage, in order."""
    return tuple(
        StageReport(
            name=stage.name,
            depth=len(discovered.blocks) + (discovered.entry_block is not None),
            num_blocks=len(discovered.blocks),
            num_edges=len(graph.edges(stage.name)),
            residual=stage.residual,
            kept_because=reason,
            shape=discovered.output_shape,
            macs=discovered.macs,
            routed_macs=sum(block.macs for block in discovered.blocks),
        )
        for stage, discovered, reason in zip(
            graph.stages.values(), found, kept_because, strict=True
        )
    )
