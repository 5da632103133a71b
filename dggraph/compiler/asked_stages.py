"""Check the stages that a caller names by the module paths of their blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dggraph.compiler.regions import Call, Flow, Region
from dggraph.compiler.stages import FoundStage, chains_of, in_order, is_tapped, members_of, stage_of
from dggraph.errors import DiscoveryError
from dggraph.graph.ir import IDENTIFIER


def asked_stages(
    flow: Flow,
    calls: Mapping[str, Call],
    regions: Mapping[str, Region],
    stages: Mapping[str, Sequence[str]],
) -> list[FoundStage]:
    """Return the stages that `stages` names, in the order in which the backbone runs them.

    Raises:
        DiscoveryError: as for `discover`.
    """
    if not isinstance(stages, Mapping):
        raise DiscoveryError(
            f"stages={stages!r} is not a mapping; write {{'layer1': ['layer1.1', 'layer1.2']}}."
        )
    found: list[FoundStage] = []
    owner: dict[str, tuple[str, str]] = {}
    for name, paths in stages.items():
        if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
            raise DiscoveryError(
                f"stage {name!r} is not an identifier; stage names become code, so use letters,"
                " digits and _ only."
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
        for block in members_of(found[-1]):
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
    return in_order(flow, found)


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
                " `named_modules()` for the paths."
            )
        region = regions.get(keys[0]) or flow.region(calls[keys[0]].fx_nodes, path, path)
        if len(keys) > 1 or region is None:
            why = (
                "is called more than once"
                if len(keys) > 1
                else "has no single input and output with the batch first"
            )
            raise DiscoveryError(
                f"stage {name!r}: {path!r} {why}; a block runs once, takes one feature map and"
                " returns one."
            )
        asked.append(region)
    chains = chains_of(flow, asked)
    if len(chains) != 1 or [block.path for block in chains[0]] != list(paths):
        raise DiscoveryError(
            f"stage {name!r}: the blocks {list(paths)} do not feed each other in this order."
        )
    shapes = [block.shape for block in chains[0]]
    taps = [a.path for a, b in zip(chains[0], chains[0][1:], strict=False) if is_tapped(flow, a, b)]
    if len(set(shapes)) > 1 or taps[(chains[0][0].input_shape != shapes[0]) :]:
        why = (
            f"have outputs of shapes {sorted(set(shapes))}"
            if len(set(shapes)) > 1
            else f"have outputs that other ops read too: {taps}"
        )
        raise DiscoveryError(
            f"stage {name!r}: its blocks {why}; the blocks of a stage share one shape and one"
            " chain."
        )
    found = stage_of(flow, chains[0], kind="add")
    if not found:
        raise DiscoveryError(
            f"stage {name!r}: {paths[0]!r} changes the shape, so it is the entry, and no block"
            " follows it; add the blocks after it."
        )
    return replace(found[0], path=name)
