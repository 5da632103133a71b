"""From discovery to the static `DynamicGraph`: names, nodes, static edges and lifted stages."""

import re
from collections.abc import Sequence
from typing import Literal

from dggraph.compiler.regions import Flow
from dggraph.compiler.residuals import StageAdds, identity_adds
from dggraph.compiler.stages import FoundStage
from dggraph.errors import WiringError
from dggraph.graph.ir import BlockNode, CandidateEdge, DynamicGraph, NodeKind, Residual, Stage

ResidualChoice = Literal["auto", "keep", "lift"]


def build_graph(
    name: str, found: Sequence[FoundStage], kept_because: Sequence[str]
) -> DynamicGraph:
    """Build the graph of the backbone itself: every edge is static.

    A kept stage is a chain. A lifted or concat stage is complete, since its skips or operands are
    the edges.

    Args:
        name: name of the backbone.
        found: its stages.
        kept_because: for each stage, why its residuals are kept; empty if it is lifted.
    """
    stages: list[Stage] = []
    nodes: list[BlockNode] = []
    edges: list[CandidateEdge] = []
    taken: set[str] = set()
    for stage_name, stage, reason in zip(stage_names(found), found, kept_because, strict=True):
        residual: Residual = "keep" if reason else "lift"
        stages.append(Stage(name=stage_name, residual=residual, channel_axis=stage.channel_axis))
        entry = stage.entry_block
        entry_name = _identifier(entry.path) if entry is not None else f"{stage_name}_in"
        vertices: list[tuple[str, NodeKind, tuple[int, ...], int, str]] = [
            (
                entry_name,
                "entry",
                stage.entry_shape,
                entry.macs if entry else 0,
                entry.path if entry else stage.entry,
            ),
            *(
                (_identifier(block.path), "block", block.shape, block.macs, block.path)
                for block in stage.blocks
            ),
            (f"{stage_name}_out", "out", stage.output_shape, 0, ""),
        ]
        names: list[str] = []
        for node_name, kind, shape, macs, path in vertices:
            names.append(_unique(node_name, taken))
            nodes.append(
                BlockNode(
                    name=names[-1],
                    stage=stage_name,
                    kind=kind,
                    shape=shape,
                    macs=macs,
                    module_path=path,
                )
            )
        is_complete = residual == "lift" or stage.kind == "concat"
        for target in range(1, len(names)):
            for source in range(0 if is_complete else target - 1, target):
                kind_of_edge = "concat" if stage.kind == "concat" else "add"
                edges.append(
                    CandidateEdge(
                        source=names[source],
                        target=names[target],
                        is_static=True,
                        kind=kind_of_edge,  # type: ignore[arg-type]
                    )
                )
    return DynamicGraph(name, stages=stages, nodes=nodes, edges=edges)


def find_adds(flow: Flow, found: Sequence[FoundStage]) -> tuple[StageAdds, ...]:
    """Return the identity adds of each stage's blocks; none for a stage whose edges do not add."""
    return tuple(
        tuple(identity_adds(flow, block) if stage.kind == "add" else () for block in stage.blocks)
        for stage in found
    )


def choose_residuals(
    found: Sequence[FoundStage],
    adds: Sequence[StageAdds],
    *,
    choice: ResidualChoice,
    is_complete: bool,
) -> tuple[str, ...]:
    """Return, for each stage, why its residuals are kept; empty if it is lifted.

    `auto` lifts a stage if the wiring is complete and every block has exactly one identity add with
    nothing after it. `lift` also takes several adds in a block.

    Args:
        found: the stages.
        adds: the identity adds of each stage.
        choice: the caller's choice.
        is_complete: whether the wiring joins every pair of a stage's nodes.

    Raises:
        WiringError: `lift` with a wiring that is not complete; the lifted skips would be all its
            edges.
    """
    if choice == "lift" and not is_complete:
        raise WiringError(
            'residual="lift" turns the skips into a complete graph, so it needs wiring="complete". '
            'Use residual="keep" (or "auto") with another wiring.'
        )
    return tuple(
        _why_kept(stage, own, choice, is_complete) for stage, own in zip(found, adds, strict=True)
    )


def _why_kept(stage: FoundStage, adds: StageAdds, choice: ResidualChoice, is_complete: bool) -> str:
    if choice == "keep":
        return "asked for"
    if stage.kind != "add":
        return "its edges are concat operands" if stage.kind == "concat" else "its channels change"
    for block, own in zip(stage.blocks, adds, strict=True):
        if not own:
            return f"{block.path} does not end in an identity add"
        if len(own) > 1 and choice == "auto":
            return f"{block.path} has {len(own)} identity adds, which only residual=lift takes"
    return "" if is_complete else "the wiring is not complete"


def stage_names(found: Sequence[FoundStage]) -> list[str]:
    """Return the path that each stage's blocks share, as an identifier.

    If that path is empty or shared by two stages, the path of the first block is used.
    """
    paths = [stage.path for stage in found]
    taken: set[str] = set()
    names: list[str] = []
    for stage in found:
        first = (stage.entry_block or stage.blocks[0]).path
        path = stage.path if stage.path and paths.count(stage.path) == 1 else first
        names.append(_unique(_identifier(path), taken))
    return names


def _identifier(path: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_]", "_", path)
    return name if re.match(r"[A-Za-z_]", name) else f"m{name}"


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    taken.add(unique)
    return unique
