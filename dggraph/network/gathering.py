"""What a block gets that runs on some images of a batch: its input, and values from outside.

Shape suffixes: B images of the batch, R rows of one node, E edges, V vertices of a stage.
`instances` is None for all images.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dggraph.compiler.lowered import routing_name
from dggraph.compiler.partition import (
    StageProgram,
)
from dggraph.network.decisions import (
    NodeDecisions,
    StageDecisions,
)
from dggraph.ops.additive import add_gained
from dggraph.ops.aggregation import adapt
from dggraph.ops.part_sums import sum_rows_of_parts
from dggraph.ops.pooling import normalised
from dggraph.ops.rows import Places, concatenate_rows, sum_rows, take_rows, zeros


def gather(
    step: StageProgram,
    lowered: nn.Module,
    vertex: int,
    features: Sequence[Tensor | None],
    row_of_BV: Places,
    decisions: StageDecisions | NodeDecisions,
    instances: Places | None,
    *,
    may_alias: bool,
) -> Tensor:
    """Return the input of `vertex` for `instances`."""
    place = step.topology.incoming(vertex)
    sources, kinds = step.topology.sources[place], step.kinds[place]
    weights_BE = decisions.weights_BE[:, place]
    weights_RE = weights_BE if instances is None else weights_BE[instances]
    incoming, entry = [features[source] for source in sources], features[0]
    assert entry is not None
    is_whole = instances is None and all(one is None or len(one) == len(entry) for one in incoming)
    places_RE = (
        None
        if is_whole
        else (row_of_BV if instances is None else row_of_BV[instances])[:, list(sources)]
    )
    axis, wanted = step.channel_axis, step.num_channels[vertex]
    if kinds[0] == "concat":
        channels = [step.num_channels[source + 1] for source in sources]
        return concatenate_rows(incoming, channels, places_RE, weights_RE, axis)
    incoming = [
        adapt(one, wanted, axis) if kind == "adapter" and one is not None else one
        for one, kind in zip(incoming, kinds, strict=True)
    ]
    if all(one is None for one in incoming):
        return no_features(step, vertex, entry, len(weights_RE))
    if step.plan.aggregation == "additive":
        gain = lowered.get_parameter(f"{routing_name(step.plan.name)}.sum_{vertex}.gain")
        is_open_RE = (weights_RE != 0).astype(weights_RE.dtype)
        own = sum_rows(incoming, places_RE, is_open_RE, may_alias=False)
        normed = [None if one is None else normalised(one, axis) for one in incoming]
        added = sum_rows(normed, places_RE, weights_RE, may_alias=False)
        return add_gained(own, added, gain, axis)
    if decisions.parts is not None:
        parts_REP = take_rows(decisions.closed_parts(place), instances)
        return sum_rows_of_parts(incoming, places_RE, weights_RE, parts_REP)
    return sum_rows(incoming, places_RE, weights_RE, may_alias=may_alias)


def no_features(step: StageProgram, vertex: int, entry: Tensor, num_rows: int) -> Tensor:
    """Return the zeros that `vertex` gets if no node leads to it."""
    shape = [num_rows, *entry.shape[1:]]
    shape[step.channel_axis] = step.num_channels[vertex]
    return zeros(shape, entry)


def read_outside(
    values: dict[str, Any], name: str, kind: str, instances: Places | None, num_instances: int
) -> Any:
    """Return a value from outside the stage, as seen by a block that runs on `instances`."""
    if kind == "rows":
        return num_instances if instances is None else len(instances)
    value = values[name]
    if (
        kind == "batched"
        and isinstance(value, Tensor)
        and value.ndim
        and len(value) == num_instances
    ):
        return take_rows(value, instances)
    return value
