"""Find the blocks of a backbone: repeated module calls, or else single convolutions.

1. Every module call that is a single-entry, single-exit region is a candidate, the coarsest first.
2. A candidate is a block if a similar one (same class; for a Sequential, the same child classes)
   follows it directly with an equal output shape. Once recognised, a class counts everywhere: the
   first block of a stage is recognised by its siblings.
3. A module that only chains similar, branching blocks is a container: its children are the blocks.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from dggraph.compiler.regions import Call, Flow, Region, module_path, signature

HOMOGENEOUS_SHARE = 0.6


def repeated_blocks(
    flow: Flow, calls: Mapping[str, Call], regions: Mapping[str, Region]
) -> list[Region]:
    """Return the coarsest regions whose signature repeats somewhere."""
    candidates = {key: region for key, region in regions.items() if region.num_mac_ops >= 2}
    by_output: dict[str, list[Region]] = {}
    containers = {key for key in candidates if _is_container(flow, key, calls, candidates)}
    for key, region in candidates.items():
        if key not in containers:
            by_output.setdefault(region.output, []).append(region)
    known = {
        region.signature
        for key, region in candidates.items()
        if key not in containers
        for fx_node in flow.glue_back(flow.by_name[region.input])
        for before in by_output.get(fx_node.name, ())
        if before.signature == region.signature and before.shape == region.shape
    }
    chosen: set[str] = set()
    for key, region in candidates.items():
        if (
            region.signature in known
            and key not in containers
            and chosen.isdisjoint(calls[key].ancestors)
        ):
            chosen.add(key)
    return [candidates[key] for key in chosen]


def conv_units(flow: Flow) -> list[Region]:
    """Return each MAC op on features as a region with the norm and activation that follow it."""
    units: list[Region] = []
    for fx_node in flow.order:
        if (
            not flow.num_mac_ops(fx_node)
            or fx_node not in flow.activations
            or not flow.has_batch(fx_node)
        ):
            continue
        members = [fx_node]
        while len(readers := flow.readers(members[-1])) == 1 and flow.is_glue(
            readers[0], weighted=True
        ):
            members.append(readers[0])
        unit = flow.region(members, module_path(fx_node), nn.Conv2d)
        if unit is not None:
            units.append(unit)
    return units


def call_region(flow: Flow, call: Call) -> Region | None:
    """Return the region of a module call, or None if it is a torch layer or has no region."""
    module = flow.module.get_submodule(call.path)
    if type(module).__module__.startswith("torch.nn") and not any(True for _ in module.children()):
        return None
    return flow.region(call.fx_nodes, call.path, signature(module))


def _is_container(
    flow: Flow, key: str, calls: Mapping[str, Call], candidates: Mapping[str, Region]
) -> bool:
    """Whether a module only chains similar, branching blocks; its children are the blocks then."""
    children = [
        region
        for other, region in candidates.items()
        if key in calls[other].ancestors and _branches(flow, region)
    ]
    for like in {child.signature for child in children}:
        alike = [
            child
            for child in children
            if child.signature == like and child.signature != candidates[key].signature
        ]
        chained = {child.output for child in alike}
        linked = sum(
            any(fx_node.name in chained for fx_node in flow.glue_back(flow.by_name[child.input]))
            for child in alike
        )
        share = sum(child.macs for child in alike) / max(candidates[key].macs, 1)
        if (
            linked == len(alike) - 1 >= 1
            and share >= HOMOGENEOUS_SHARE
            and not _branches(flow, candidates[key], alike)
        ):
            return True
    return False


def _branches(flow: Flow, region: Region, apart_from: Sequence[Region] = ()) -> bool:
    """Whether a tensor inside, or the input, has two readers: a residual or parallel branch."""
    hidden = {name for inner in apart_from for name in inner.fx_nodes} | {
        inner.input for inner in apart_from
    }
    inside = {flow.by_name[name] for name in region.fx_nodes}
    points = [flow.by_name[region.input], *inside - {flow.by_name[region.output]}]
    return any(
        len([reader for reader in flow.readers(point) if reader in inside]) > 1
        for point in points
        if point in flow.activations and point.name not in hidden
    )
