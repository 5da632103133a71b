"""Hyper-connections (arXiv 2409.19606): n residual streams in place of one.

Shape suffixes: B images, N streams, M elements of one stream's features.
"""

from typing import Literal

import torch
from torch import Tensor, fx, nn

from dggraph.baselines.anatomy import Branch, branches_of
from dggraph.baselines.draft import Draft, finish, open_draft
from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.options import at_least, one_of
from dggraph.compiler.stages import FoundStage
from dggraph.models.registry import LoadedModel
from dggraph.ops.pooling import pool

Form = Literal["static", "dynamic"]
START_SCALE = 0.01
"""The factor of what depends on the image, at the start."""
POINTWISE = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Identity)


class StreamConnection(nn.Module):
    """What one branch reads from N streams, and what they become beside it.

    Static weights start such that branch k reads stream k mod N, streams stay as they are, and each
    gets the branch's output with weight 1. In the dynamic form, s tanh(W norm(mean(stream))) is
    added to each weight, with W = 0 and s = 0.01 at the start.
    """

    def __init__(
        self, num_channels: int, num_streams: int, channel_axis: int, *, index: int, form: Form
    ) -> None:
        super().__init__()
        self.channel_axis, self.num_streams = channel_axis, num_streams
        read_N = torch.zeros(num_streams)
        read_N[index % num_streams] = 1
        # column 0: what the branch reads; columns 1 to N: what each stream becomes
        self.mix = nn.Parameter(torch.cat([read_N[:, None], torch.eye(num_streams)], 1))
        self.write = nn.Parameter(torch.ones(num_streams))
        self.dynamic = (
            nn.Linear(num_channels, num_streams + 2, bias=False) if form == "dynamic" else None
        )
        if self.dynamic is not None:
            nn.init.zeros_(self.dynamic.weight)
            self.mix_scale = nn.Parameter(torch.tensor(START_SCALE))
            self.write_scale = nn.Parameter(torch.tensor(START_SCALE))

    def forward(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map streams (B, N, ...) to the branch's input (B, ...), streams, and weights (B, N)."""
        num_images, features = len(streams), streams.shape[2:]
        mix = self.mix.to(streams.dtype).expand(num_images, -1, -1)
        write_BN = self.write.to(streams.dtype).expand(num_images, -1)
        if self.dynamic is not None:
            axis = self.channel_axis % (streams.ndim - 1) + 1
            axes = [one for one in range(2, streams.ndim) if one != axis]
            pooled = pool(streams, axes, streams.dtype) if axes else streams
            normed = nn.functional.rms_norm(pooled, pooled.shape[-1:])
            own = self.dynamic(normed).tanh()
            mix = mix + self.mix_scale.to(own.dtype) * own[:, :, :-1]
            write_BN = write_BN + self.write_scale.to(own.dtype) * own[:, :, -1]
        mixed = mix.transpose(1, 2) @ streams.flatten(2)
        read = mixed[:, 0].reshape(num_images, *features)
        kept = mixed[:, 1:].reshape(num_images, self.num_streams, *features)
        return read, kept, write_BN


def split(features: Tensor, num_streams: int) -> Tensor:
    """Return N copies of features (B, ...) as streams (B, N, ...)."""
    return features[:, None].repeat(1, num_streams, *[1] * (features.ndim - 1))


def write(streams: Tensor, branch: Tensor, weights_BN: Tensor) -> Tensor:
    """Add the branch's output (B, ...) to each stream (B, N, ...), with its weight."""
    return streams + branch[:, None] * weights_BN.reshape(
        *weights_BN.shape, *[1] * (branch.ndim - 1)
    )


def merge(streams: Tensor) -> Tensor:
    """Return the mean of streams (B, N, ...); of equal streams it is bitwise the first."""
    return streams[:, 0] + (streams - streams[:, :1]).mean(1)


def hyper_connections(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    streams: int = 4,
    form: Form = "dynamic",
) -> BaselineNetwork:
    """Give each stage several residual streams (Hyper-Connections, arXiv 2409.19606).

    A branch reads a weighted sum of the streams and writes to all of them; between, they mix. In
    the `dynamic` form weights also depend on the image, by pooled features (the paper's depend on
    the position). Streams part behind a stage's input and are averaged at its output. They need N
    times the memory of a stage's features.

    Equal streams are one, so the network starts as the backbone, bitwise.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        streams: N. The paper found no gain with one.
        form: `static` for weights that are the same for every image, or `dynamic`.

    Raises:
        InputError: An option is not valid, or the model is not, or no stage has residual blocks
            only.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph
        >>> net = dggraph.baselines.hyper_connections("dggraph:resnet20_8", streams=2)
        >>> net.report.exactness, net.report.max_difference
        ('to the bit', 0.0)
    """
    at_least("streams", streams, 1)
    one_of("form", form, ("static", "dynamic"))
    draft = open_draft(model, example_input, method="hyper_connections")
    for stage in draft.found.stages:
        branches = _residual_branches(draft, stage)
        if not branches:
            reason = "its blocks are not all of the form x + F(x)"
            draft.unchanged.append((stage.blocks[0].path, f"first of a stage: {reason}"))
            continue
        _split_stage_(draft, stage, branches, streams, form)
    return finish(
        draft,
        method="hyper_connections",
        options={"streams": streams, "form": form},
        exactness="to the bit",
        reason="all streams start equal, and each branch reads one of them",
    )


def _residual_branches(draft: Draft, stage: FoundStage) -> list[Branch]:
    """Return all branches of a stage whose blocks are lines of adds and pointwise ops, or none."""
    flow = draft.flow
    if stage.kind != "add":
        return []
    branches = [
        one for block in stage.blocks for one in branches_of(flow, block, stage.channel_axis)
    ]
    if not all(branch.is_identity for branch in branches):
        return []
    line = [flow.by_name[stage.entry], *(flow.by_name[branch.add] for branch in branches)]
    starts = [flow.by_name[branch.shortcut] for branch in branches] + [flow.by_name[stage.output]]
    for before, after in zip(line, starts, strict=True):
        node = after
        while node is not before:
            if not _is_pointwise(draft, node):
                return []
            (node,) = flow.inputs(node)
    return branches


def _is_pointwise(draft: Draft, fx_node: fx.Node) -> bool:
    if fx_node.op == "call_module":
        return type(draft.backbone.get_submodule(str(fx_node.target))) in POINTWISE
    return fx_node.target in (torch.relu, nn.functional.relu, "relu", "relu_")


def _split_stage_(
    draft: Draft, stage: FoundStage, branches: list[Branch], num_streams: int, form: Form
) -> None:
    """Rewire one stage to streams. In place."""
    members = {name for block in stage.blocks for name in block.fx_nodes}
    entry, last = draft.by_name[stage.entry], draft.by_name[stage.output]
    readers = [user for user in last.users if user.name not in members]
    inside = [user for user in entry.users if user.name in members]
    first = min(inside, key=list(draft.graph.nodes).index)
    with draft.graph.inserting_before(first):
        value = draft.graph.call_function(split, (entry, num_streams))
    for user in inside:
        user.replace_input_with(entry, value)
    current = value
    for index, branch in enumerate(branches):
        add, end = draft.by_name[branch.add], draft.by_name[branch.end]
        if index:
            current = draft.by_name[branch.shortcut]
        connection = StreamConnection(
            branch.num_channels, num_streams, branch.channel_axis, index=index, form=form
        )
        users = [user for user in current.users if user.name in members and user is not add]
        with draft.graph.inserting_after(current):
            call = draft.call(branch.block.path, connection, (current,))
        with draft.graph.inserting_after(call):
            parts = [draft.graph.call_function(part, (call,)) for part in (_read, _kept, _weights)]
        for user in users:
            user.replace_input_with(current, parts[0])
        with draft.graph.inserting_before(add):
            written = draft.graph.call_function(write, (parts[1], end, parts[2]))
        add.replace_all_uses_with(written)
        draft.graph.erase_node(add)
        draft.by_name[branch.add] = written
        draft.changed.append(branch.block.path)
    last = draft.by_name[stage.output]
    with draft.graph.inserting_after(last):
        merged = draft.graph.call_function(merge, (last,))
    for user in readers:
        user.replace_input_with(last, merged)


def _read(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return parts[0]


def _kept(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return parts[1]


def _weights(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return parts[2]
