"""Report the parts of a backbone that belong to no stage, which every image runs, and why."""

from collections.abc import Mapping, Sequence

from torch import fx

from dggraph.compiler.profiling import TRACED_BATCH
from dggraph.compiler.regions import Call, Flow, Region, module_path
from dggraph.compiler.stages import FoundStage, members_of


def static_parts(
    flow: Flow,
    calls: Mapping[str, Call],
    found: Sequence[FoundStage],
    blocks: Sequence[Region] | None,
) -> tuple[tuple[str, int, str], ...]:
    """Return the MACs outside all stages by the coarsest module without a stage, largest first.

    `blocks` is None if the caller named the stages.

    Returns:
        (module path, MACs, reason) of each part.
    """
    taken = {name for stage in found for block in members_of(stage) for name in block.fx_nodes}
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
            place = lonely[fx_node.name]
            is_read = fx_node in flow.read
            reason = "the only block at its shape" if is_read else "nothing reads its output"
        else:
            place = calls[free[0]].path if free else module_path(fx_node)
            reason = "not named in `stages`" if blocks is None else _why_no_block(flow, fx_node)
        if fx_node.name in flow.profile.unroutable:
            reason = (
                f"its features are {flow.profile.unroutable[fx_node.name]}, and gates only weigh"
                " real floating-point features"
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
            f"it runs on {shape[0] // TRACED_BATCH} parts of each image in the batch, but each"
            " image takes a single path"
        )
    return "part of no repeated block with one input and one output"
