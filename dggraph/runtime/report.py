"""What conversion found: stages, edges, MACs, and what stayed static and why."""

from dataclasses import dataclass

from dggraph.compiler.discovery import Discovery
from dggraph.graph.ir import DynamicGraph, Residual


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
    shape: tuple[int, ...]
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPart:
    """A part of the backbone outside every stage."""

    module_path: str
    macs: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionReport:
    """What conversion found, what stayed static and why."""

    name: str
    stages: tuple[StageReport, ...]
    total_macs: int
    """MACs of the backbone, one instance."""
    static: tuple[StaticPart, ...]
    frozen: tuple[str, ...]
    """Parameters that the traced forward never reads (auxiliary heads); they no longer require gradients."""
    opaque: tuple[str, ...]
    """Classes kept as one call because they could not be traced."""
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
    def num_blocks(self) -> int:
        """Routed blocks."""
        return sum(stage.num_blocks for stage in self.stages)

    @property
    def num_edges(self) -> int:
        """Candidate edges."""
        return sum(stage.num_edges for stage in self.stages)


def report_stages(graph: DynamicGraph, found: Discovery) -> tuple[StageReport, ...]:
    """One `StageReport` a stage, in order."""
    return tuple(
        StageReport(
            name=stage.name,
            depth=len(discovered.blocks) + (discovered.entry_block is not None),
            num_blocks=len(discovered.blocks),
            num_edges=len(graph.edges(stage.name)),
            residual=stage.residual,
            shape=discovered.output_shape,
            macs=discovered.macs,
        )
        for stage, discovered in zip(graph.stages.values(), found.stages, strict=True)
    )
