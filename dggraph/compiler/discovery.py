"""Find stages, which are runs of similar blocks with one output shape.

Both the fx graph and the module tree are used.

1. `blocks` finds the blocks: module calls that repeat.
2. Blocks form a chain if the output of each is the input of the next. Weightless glue between two
   blocks joins the first of them.
3. A stage is a run of blocks in a chain with equal input and output shape. Its entry v0 is the
   output that feeds the run.
4. If no block of a run has a residual and channels change inside it (GoogLeNet, SqueezeNet), the
   run is one stage with adapters.
5. Growing concats (DenseNet) are a separate kind of stage.
6. If all this covers less than 30 % of the MACs (VGG, AlexNet), each convolution with its norm and
   activation is a block.
7. A stage whose output nothing reads stays static (a feature extractor of timm that returns early
   features still runs the blocks behind them).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dggraph.compiler.asked_stages import asked_stages
from dggraph.compiler.blocks import call_region, conv_units, repeated_blocks
from dggraph.compiler.growth import find_growths
from dggraph.compiler.regions import Flow, module_calls
from dggraph.compiler.stages import (
    FoundStage,
    chains_of,
    cut_stages,
    growth_stage,
    in_order,
    members_of,
)
from dggraph.compiler.static_parts import static_parts

MIN_MODULE_COVERAGE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The parts of a backbone that can be routed, and those that cannot."""

    stages: tuple[FoundStage, ...]
    total_macs: int
    static: tuple[tuple[str, int, str], ...]
    """(module path, MACs, reason) of each part that belongs to no stage."""


def discover(flow: Flow, stages: Mapping[str, Sequence[str]] | None = None) -> Discovery:
    """Find the stages of a traced backbone.

    Args:
        flow: the traced and profiled backbone.
        stages: replaces discovery: for each stage name, the module paths of its blocks in order. A
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
        found = asked_stages(flow, calls, regions, stages)
        return Discovery(
            stages=tuple(found), total_macs=total, static=static_parts(flow, calls, found, None)
        )
    blocks = repeated_blocks(flow, calls, regions)
    growths = [growth_stage(flow, growth) for growth in find_growths(flow)]
    grown = {name for growth in growths for block in growth.blocks for name in block.fx_nodes}
    blocks = [block for block in blocks if not grown.intersection(block.fx_nodes)]
    found = growths + [
        stage for chain in chains_of(flow, blocks) for stage in cut_stages(flow, chain)
    ]
    if sum(stage.macs for stage in found) < MIN_MODULE_COVERAGE * total:
        taken = {name for stage in found for block in members_of(stage) for name in block.fx_nodes}
        units = [unit for unit in conv_units(flow) if not taken.intersection(unit.fx_nodes)]
        found += [stage for chain in chains_of(flow, units) for stage in cut_stages(flow, chain)]
        blocks += units
    found = [stage for stage in found if flow.by_name[stage.output] in flow.read]
    return Discovery(
        stages=tuple(in_order(flow, found)),
        total_macs=total,
        static=static_parts(flow, calls, found, blocks),
    )
