"""What conversion found: stages, edges, MACs, and what stayed static and why."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dggraph.compiler.answers import Assumption
from dggraph.compiler.planning import StagePlan
from dggraph.compiler.regions import Flow
from dggraph.compiler.stages import FoundStage
from dggraph.compiler.tracing import Opaque
from dggraph.graph.ir import DynamicGraph, Residual
from dggraph.network.blueprint import Blueprint
from dggraph.views.escaping import count
from dggraph.views.html_table import html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """One stage in numbers."""

    name: str
    depth: int
    """Blocks, the entry block counted where there is one."""
    num_blocks: int
    """Routed blocks, N."""
    num_edges: int
    residual: Residual
    kept_because: str
    """Why its residuals stay inside the blocks; empty where they are lifted."""
    shape: tuple[int, ...]
    macs: int
    """MACs of the entry block and the routed blocks."""
    routed_macs: int
    """MACs of the routed blocks alone: what an instance may skip."""
    dense_because: str = ""
    """Why its blocks always run on whole batches; empty where they skip what an image does not
    need.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPart:
    """A part of the backbone outside every stage."""

    module_path: str
    macs: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What conversion found, what stayed static and why. Notebooks show it as a table, one row a
    stage.
    """

    name: str
    stages: tuple[StageReport, ...]
    total_macs: int
    """MACs of the backbone, one instance."""
    static: tuple[StaticPart, ...]
    frozen: tuple[str, ...]
    """Parameters that the forward traced in eval mode does not read, for example auxiliary heads;
    they require no gradients.
    """
    opaque: tuple[Opaque, ...]
    """Classes and functions kept as one call because they could not be traced: where, and why."""
    assumptions: tuple[Assumption, ...]
    """Branches that the backbone's Python took for the example; a batch for which it would take
    another one is refused.
    """
    checkpointed: tuple[str, ...]
    """Modules (empty: the backbone itself) whose gradient checkpointing did not come along;
    `net.checkpoint_aggregation` is another.
    """
    eval_only: tuple[str, ...]
    """Places where the backbone's forward decides by `self.training`, which the network does not:
    it does as in eval mode there.
    """
    hooks: tuple[str, ...]
    """Modules (empty: the backbone itself) whose hooks did not come along: they are not called as a
    whole any more.
    """
    detached: tuple[str, ...] = ()
    """Attributes that held tensors computed from others, as a former forward leaves them: the copy
    holds their values alone.
    """
    branches: str = ""
    """What to call first, where blocks still hold branches that can be fused into one
    convolution.
    """
    max_difference: float
    """max |static - lowered| at batch 3, as the self-check measured it."""

    @property
    def covered_macs(self) -> int:
        """MACs inside stages, entry blocks counted."""
        return sum(stage.macs for stage in self.stages)

    @property
    def covered_fraction(self) -> float:
        """Share of the MACs inside stages."""
        return self.covered_macs / self.total_macs if self.total_macs else 0.0

    @property
    def routed_fraction(self) -> float:
        """Share of the MACs in routed blocks, entry blocks not counted: what routing can skip at
        most.
        """
        return (
            sum(stage.routed_macs for stage in self.stages) / self.total_macs
            if self.total_macs
            else 0.0
        )

    @property
    def num_blocks(self) -> int:
        """Routed blocks."""
        return sum(stage.num_blocks for stage in self.stages)

    @property
    def num_edges(self) -> int:
        """Candidate edges."""
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
    """What is known once a network is lowered, before it is checked; `frozen` are the parameters
    that it does not read.
    """
    traced = flow.trace
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
        assumptions=traced.assumptions,
        checkpointed=traced.checkpointed,
        eval_only=traced.eval_only,
        hooks=traced.hooks,
        max_difference=0.0,
    )


def note_checks(
    report: ConversionReport, plan: Sequence[StagePlan], *, max_difference: float
) -> ConversionReport:
    """`report` with what the self-checks found: how far the static path is from the backbone, and
    which stages run on whole batches, as `plan` says.
    """
    stages = tuple(
        replace(stage, dense_because=one.dense_only)
        for stage, one in zip(report.stages, plan, strict=True)
    )
    return replace(report, stages=stages, max_difference=max_difference)


def _report_stages(
    graph: DynamicGraph, found: Sequence[FoundStage], kept_because: Sequence[str]
) -> tuple[StageReport, ...]:
    """One `StageReport` a stage, in order."""
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
