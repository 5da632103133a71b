"""Find stages: runs of like blocks with one output shape, from the fx graph and the module tree
together.

1. Blocks are found by `blocks`: module calls that repeat.
2. Blocks whose output is the next one's input form chains; weightless glue between them joins the
   block before it.
3. A stage is a run of blocks in a chain with equal input and output shape. Its entry v0 is the
   output that feeds the run.
4. Where no block of a run has a residual and channels change inside it (GoogLeNet, SqueezeNet), the
   run is one stage with adapters.
5. Growing concats (DenseNet) are stages of their own kind.
6. Where all this covers less than 30 % of the MACs (VGG, AlexNet), each convolution with its norm
   and activation is a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from dggraph.compiler.blocks import call_region, conv_units, repeated_blocks
from dggraph.compiler.growth import find_growths
from dggraph.compiler.profiling import TRACED_BATCH
from dggraph.compiler.regions import Call, Flow, Region, module_calls, module_path
from dggraph.compiler.residuals import identity_adds
from dggraph.errors import DiscoveryError
from dggraph.graph.ir import IDENTIFIER, EdgeKind

MIN_MODULE_COVERAGE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStage:
    """A stage as discovery found it, in the words of the fx graph."""

    path: str
    """Module path that its blocks share."""
    entry: str
    """Name of the fx node whose value is v0."""
    entry_block: Region | None
    """The block that computes v0, where it is one."""
    entry_shape: tuple[int, ...]
    blocks: tuple[Region, ...]
    """The routed blocks v1 .. vN."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What can be routed in a backbone, and what cannot."""

    stages: tuple[FoundStage, ...]
    total_macs: int
    static: tuple[tuple[str, int, str], ...]
    """(module path, MACs, reason) of what belongs to no stage."""


def discover(flow: Flow, stages: Mapping[str, Sequence[str]] | None = None) -> Discovery:
    """Find the stages of a traced backbone.

    Args:
        flow: the traced and profiled backbone.
        stages: overrides discovery: per stage name, the module paths of its blocks in order. A
            first block that changes the shape is the stage's entry.

    Raises:
        DiscoveryError: a path in `stages` is not a single-entry, single-exit call, the blocks do
            not follow each other, or two stages share a module.
    """
    calls = module_calls(flow.order)
    regions = {
        key: region
        for key, call in calls.items()
        if (region := call_region(flow, call)) is not None
    }
    total = sum(flow.profile.macs.values())
    if stages is not None:
        found = _asked_stages(flow, calls, regions, stages)
        return Discovery(
            stages=tuple(found), total_macs=total, static=_static(flow, calls, found, None)
        )
    blocks = repeated_blocks(flow, calls, regions)
    growths = [_growth_stage(flow, growth) for growth in find_growths(flow)]
    grown = {name for growth in growths for block in growth.blocks for name in block.fx_nodes}
    blocks = [block for block in blocks if not grown.intersection(block.fx_nodes)]
    found = growths + [stage for chain in _chains(flow, blocks) for stage in _stages(flow, chain)]
    if sum(stage.macs for stage in found) < MIN_MODULE_COVERAGE * total:
        taken = {name for stage in found for block in _members(stage) for name in block.fx_nodes}
        units = [unit for unit in conv_units(flow) if not taken.intersection(unit.fx_nodes)]
        found += [stage for chain in _chains(flow, units) for stage in _stages(flow, chain)]
        blocks += units
    return Discovery(
        stages=tuple(_in_order(flow, found)),
        total_macs=total,
        static=_static(flow, calls, found, blocks),
    )


def _in_order(flow: Flow, found: Sequence[FoundStage]) -> list[FoundStage]:
    """Stages in the order the backbone runs them: lowering rewires one after the other."""
    return sorted(
        found,
        key=lambda stage: min(flow.order[flow.by_name[name]] for name in stage.blocks[0].fx_nodes),
    )


def _chains(flow: Flow, blocks: Sequence[Region]) -> list[list[Region]]:
    """Step 2: blocks in the order they feed each other, glue taken in."""
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


def _stages(flow: Flow, chain: Sequence[Region]) -> list[FoundStage]:
    """Steps 3 and 4: cut a chain into stages."""
    runs: list[list[Region]] = []
    for block in chain:
        if runs and _same_grid(runs[-1][-1], block) and not _is_tapped(flow, runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    found: list[FoundStage] = []
    for run in runs:
        changes = len({block.shape for block in run}) > 1
        if changes and not any(identity_adds(flow, block) for block in run):
            found += _stage(flow, run, kind="adapter")
            continue
        parts: list[list[Region]] = []
        for block in run:
            if parts and parts[-1][-1].shape == block.input_shape == block.shape:
                parts[-1].append(block)
            else:
                parts.append([block])
        for part in parts:
            found += _stage(flow, part, kind="add")
    return found


def _stage(flow: Flow, run: Sequence[Region], kind: EdgeKind) -> list[FoundStage]:
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


def _growth_stage(flow: Flow, growth: tuple[str, tuple[Region, ...], str, int]) -> FoundStage:
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


def _asked_stages(
    flow: Flow,
    calls: Mapping[str, Call],
    regions: Mapping[str, Region],
    stages: Mapping[str, Sequence[str]],
) -> list[FoundStage]:
    if not isinstance(stages, Mapping):
        raise DiscoveryError(
            f"stages={stages!r} is not a mapping; write {{'layer1': ['layer1.1', 'layer1.2']}}."
        )
    found: list[FoundStage] = []
    owner: dict[str, tuple[str, str]] = {}
    for name, paths in stages.items():
        if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
            raise DiscoveryError(
                f"stage {name!r} is not an identifier; stage names become code, use letters,"
                " digits, _."
            )
        if (
            isinstance(paths, str)
            or not isinstance(paths, Sequence)
            or not all(isinstance(path, str) for path in paths)
        ):
            raise DiscoveryError(
                f"stage {name!r}: {paths!r} is not a list of module paths; write ['{name}.0',"
                f" '{name}.1']."
            )
        found.append(_asked_stage(flow, calls, regions, name, paths))
        for block in _members(found[-1]):
            for taken in block.fx_nodes:
                other, path = owner.setdefault(taken, (name, block.path))
                if (other, path) != (name, block.path):
                    raise DiscoveryError(
                        f"stages {other!r} and {name!r} share {block.path!r} (the first has"
                        f" {path!r}); a module belongs to one block."
                        if other != name
                        else (
                            f"stage {name!r}: {path!r} and {block.path!r} share ops; a module"
                            " belongs to one block."
                        )
                    )
    return _in_order(flow, found)


def _asked_stage(
    flow: Flow,
    calls: Mapping[str, Call],
    regions: Mapping[str, Region],
    name: str,
    paths: Sequence[str],
) -> FoundStage:
    if not paths:
        raise DiscoveryError(
            f"stage {name!r} lists no blocks; name the module paths of its blocks in order."
        )
    asked: list[Region] = []
    for path in paths:
        keys = [key for key, call in calls.items() if call.path == path]
        if not keys:
            raise DiscoveryError(
                f"stage {name!r}: {path!r} is not a module that the backbone calls; see"
                " `named_modules()`."
            )
        region = regions.get(keys[0]) or flow.region(calls[keys[0]].fx_nodes, path, path)
        if len(keys) > 1 or region is None:
            why = (
                "is called more than once"
                if len(keys) > 1
                else "has no single input and output with the batch first"
            )
            raise DiscoveryError(
                f"stage {name!r}: {path!r} {why}; a block takes one feature map and gives one,"
                " once."
            )
        asked.append(region)
    chains = _chains(flow, asked)
    if len(chains) != 1 or [block.path for block in chains[0]] != list(paths):
        raise DiscoveryError(
            f"stage {name!r}: the blocks {list(paths)} do not feed each other in this order."
        )
    shapes = [block.shape for block in chains[0]]
    taps = [
        a.path for a, b in zip(chains[0], chains[0][1:], strict=False) if _is_tapped(flow, a, b)
    ]
    if len(set(shapes)) > 1 or taps[(chains[0][0].input_shape != shapes[0]) :]:
        why = (
            f"have outputs of shapes {sorted(set(shapes))}"
            if len(set(shapes)) > 1
            else f"are read elsewhere too: {taps}"
        )
        raise DiscoveryError(
            f"stage {name!r}: its blocks {why}; the blocks of a stage share one shape and one"
            " chain."
        )
    found = _stage(flow, chains[0], kind="add")
    if not found:
        raise DiscoveryError(
            f"stage {name!r}: {paths[0]!r} changes the shape, so it is the entry and no block is"
            " left."
        )
    return replace(found[0], path=name)


def _same_grid(before: Region, after: Region) -> bool:
    """True where `after` keeps everything but perhaps the number of channels."""
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


def _is_tapped(flow: Flow, before: Region, after: Region) -> bool:
    """True where something besides `after` reads what `before` hands on."""
    inside = {flow.by_name[name] for name in (*before.fx_nodes, *after.fx_nodes)}
    return any(reader not in inside for reader in flow.readers(flow.by_name[before.output]))


def _channel_axis(flow: Flow, block: Region) -> int:
    """1 for NCHW, -1 for NHWC and tokens: what the first module that knows its number of channels
    says.

    Modules that read the block's input come first, then (where that input goes into plain
    functions, as in Swin V2's attention) those that read a tensor of its shape, then any whose norm
    or bias is as long as one axis alone (TinyViT's blocks are opaque).
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


def _members(stage: FoundStage) -> tuple[Region, ...]:
    return (stage.entry_block, *stage.blocks) if stage.entry_block is not None else stage.blocks


def _static(
    flow: Flow,
    calls: Mapping[str, Call],
    found: Sequence[FoundStage],
    blocks: Sequence[Region] | None,
) -> tuple[tuple[str, int, str], ...]:
    """MACs outside every stage, by the coarsest module that holds no stage, largest first. `blocks`
    is None where the caller chose.
    """
    taken = {name for stage in found for block in _members(stage) for name in block.fx_nodes}
    lonely = {name: block.path for block in blocks or () for name in block.fx_nodes}
    macs: dict[tuple[str, str], int] = {}
    for fx_node in flow.order:
        count = flow.profile.macs.get(fx_node.name, 0)
        if not count or fx_node.name in taken:
            continue
        keys = list(fx_node.meta.get("nn_module_stack") or {})
        free = [
            key for key in keys if not any(inner.name in taken for inner in calls[key].fx_nodes)
        ]
        if fx_node.name in lonely:
            place, reason = lonely[fx_node.name], "the only block at its shape"
        else:
            place = calls[free[0]].path if free else module_path(fx_node)
            reason = "not named in `stages`" if blocks is None else _why_no_block(flow, fx_node)
        if fx_node.name in flow.profile.unroutable:
            reason = (
                f"its features are {flow.profile.unroutable[fx_node.name]}, and gates weigh real"
                " floating-point features alone"
            )
        macs[place, reason] = macs.get((place, reason), 0) + count
    return tuple(
        (path, count, reason)
        for (path, reason), count in sorted(macs.items(), key=lambda item: -item[1])
    )


def _why_no_block(flow: Flow, fx_node: fx.Node) -> str:
    shape = flow.profile.shapes.get(fx_node.name)
    if shape is not None and len(shape) == 4 and shape[0] > TRACED_BATCH:
        return (
            f"it runs on {shape[0] // TRACED_BATCH} parts of each image in the batch, and routes"
            " would be an image's own"
        )
    return "part of no repeated block with one input and one output"
