"""Stages: runs of blocks with equal input and output shape, cut from chains of blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.residuals import identity_adds
from dggraph.graph.ir import EdgeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStage:
    """A stage that discovery found, in names of fx nodes."""

    path: str
    """Module path that its blocks share."""
    entry: str
    """Name of the fx node whose value is v0."""
    entry_block: Region | None
    """The block that computes v0, or None if no block does."""
    entry_shape: tuple[int, ...]
    blocks: tuple[Region, ...]
    """The routed blocks v1 to vN."""
    output: str
    """Name of the fx node whose readers read the stage's output."""
    output_shape: tuple[int, ...]
    channel_axis: int
    kind: EdgeKind = "add"

    @property
    def macs(self) -> int:
        """MACs of one instance in the entry block and the routed blocks."""
        entry = self.entry_block.macs if self.entry_block is not None else 0
        return entry + sum(block.macs for block in self.blocks)


def in_order(flow: Flow, found: Sequence[FoundStage]) -> list[FoundStage]:
    """Return the stages in the order in which the backbone runs them, and lowering rewires them."""
    return sorted(
        found,
        key=lambda stage: min(flow.order[flow.by_name[name]] for name in stage.blocks[0].fx_nodes),
    )


def chains_of(flow: Flow, blocks: Sequence[Region]) -> list[list[Region]]:
    """Return chains of blocks in which each feeds the next, extended by the glue between them."""
    by_output = {block.output: block for block in blocks}
    previous: dict[str, str] = {}
    for block in blocks:
        for fx_node in flow.glue_back(flow.by_name[block.input]):
            if fx_node.name in by_output and by_output[fx_node.name] is not block:
                previous[block.output] = fx_node.name
                break
    following: dict[str, list[str]] = {}
    for after, before in previous.items():
        following.setdefault(before, []).append(after)
    chains: list[list[Region]] = []
    starts = [
        output
        for output in by_output
        if output not in previous or len(following[previous[output]]) > 1
    ]
    for first in sorted(starts, key=lambda name: flow.order[flow.by_name[name]]):
        chain = [by_output[first]]
        while len(onward := following.get(chain[-1].output, [])) == 1:
            successor = by_output[onward[0]]
            chain[-1] = flow.extend(chain[-1], flow.by_name[successor.input])
            chain.append(successor)
        chains.append(chain)
    return chains


def cut_stages(flow: Flow, chain: Sequence[Region]) -> list[FoundStage]:
    """Cut a chain into stages: runs of one shape, or, without residuals, of one grid."""
    runs: list[list[Region]] = []
    for block in chain:
        if runs and _same_grid(runs[-1][-1], block) and not is_tapped(flow, runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    found: list[FoundStage] = []
    for run in runs:
        changes = len({block.shape for block in run}) > 1
        if changes and not any(identity_adds(flow, block) for block in run):
            found += stage_of(flow, run, kind="adapter")
            continue
        parts: list[list[Region]] = []
        for block in run:
            if parts and parts[-1][-1].shape == block.input_shape == block.shape:
                parts[-1].append(block)
            else:
                parts.append([block])
        for part in parts:
            found += stage_of(flow, part, kind="add")
    return found


def stage_of(flow: Flow, run: Sequence[Region], kind: EdgeKind) -> list[FoundStage]:
    """Return a run of blocks as a stage; empty if its only block changes the shape."""
    entry_block = run[0] if run[0].input_shape != run[0].shape else None
    blocks = tuple(run[1:] if entry_block is not None else run)
    if not blocks:
        return []
    entry = blocks[0].input
    return [
        FoundStage(
            path=_common_path([block.path for block in run]),
            entry=entry,
            entry_block=entry_block,
            entry_shape=flow.shape(flow.by_name[entry]),
            blocks=blocks,
            output=blocks[-1].output,
            output_shape=blocks[-1].shape,
            channel_axis=_channel_axis(flow, blocks[0]),
            kind=kind,
        )
    ]


def growth_stage(flow: Flow, growth: tuple[str, tuple[Region, ...], str, int]) -> FoundStage:
    """Return a growing concat as a stage (see `growth`)."""
    entry, blocks, output, axis = growth
    return FoundStage(
        path=_common_path([block.path for block in blocks]),
        entry=entry,
        entry_block=None,
        entry_shape=flow.shape(flow.by_name[entry]),
        blocks=blocks,
        output=output,
        output_shape=flow.shape(flow.by_name[output]),
        channel_axis=axis,
        kind="concat",
    )


def _same_grid(before: Region, after: Region) -> bool:
    """Whether `after` keeps everything except possibly the number of channels."""
    return (
        len(before.shape) == len(after.shape)
        and sum(a != b for a, b in zip(before.shape, after.shape, strict=True))
        <= (len(before.shape) > 1)
        and (
            len(before.shape) != 3
            or before.shape[1:] == after.shape[1:]
            or before.shape[:2] == after.shape[:2]
        )
    )


def is_tapped(flow: Flow, before: Region, after: Region) -> bool:
    """Whether an op outside `before` and `after` reads the output of `before`."""
    inside = {flow.by_name[name] for name in (*before.fx_nodes, *after.fx_nodes)}
    return any(reader not in inside for reader in flow.readers(flow.by_name[before.output]))


def _channel_axis(flow: Flow, block: Region) -> int:
    """Return 1 for NCHW, -1 for NHWC and tokens.

    The first module with a known number of channels decides. Modules that read the block's input
    come first. If that input only goes into plain functions, as in Swin V2's attention, modules
    that read a tensor of its shape follow. The last are modules whose norm or bias is as long as
    exactly one axis (TinyViT's blocks are opaque).
    """
    shape = flow.shape(flow.by_name[block.input])
    if len(shape) != 3:
        return -1
    calls = [
        fx_node for name in block.fx_nodes if (fx_node := flow.by_name[name]).op == "call_module"
    ]
    alike = [
        call for call in calls if any(flow.shape(source) == shape for source in flow.inputs(call))
    ]
    for call in sorted(
        alike, key=lambda call: flow.by_name[block.input] not in call.all_input_nodes
    ):
        module = flow.module.get_submodule(str(call.target))
        if isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:
            return -1
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm):
            return 1
    for call in (*alike, *calls):
        for module in flow.module.get_submodule(str(call.target)).modules():
            sizes = {
                parameter.shape[0]
                for parameter in module.parameters(recurse=False)
                if parameter.ndim == 1
            }
            if shape[0] != shape[-1] and sizes in ({shape[0]}, {shape[-1]}):
                return 1 if sizes == {shape[0]} else -1
    return 1


def _common_path(paths: Sequence[str]) -> str:
    parts = [path.split(".") for path in paths]
    shared: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def members_of(stage: FoundStage) -> tuple[Region, ...]:
    """Return the blocks of a stage, with its entry block first if it has one."""
    return (stage.entry_block, *stage.blocks) if stage.entry_block is not None else stage.blocks
