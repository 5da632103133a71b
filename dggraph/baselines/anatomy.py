"""The parts of a backbone that the methods change: its blocks, and the branches inside them.

Blocks are those that `compiler.discovery` finds, entries of stages included. A branch is what a
block adds to its shortcut, F in `x + F(x)`, in blocks whose shortcut is a projection too. A block
without shortcut is one branch as a whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from dggraph.compiler.discovery import Discovery
from dggraph.compiler.regions import Flow, Region
from dggraph.compiler.residuals import is_add


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """What one block adds to its shortcut, in names of fx nodes."""

    block: Region
    """The block around it."""
    end: str
    """The fx node whose value leaves the branch."""
    add: str
    """The fx node that adds it to the shortcut; empty if there is none."""
    shortcut: str
    """The fx node whose value the other operand of the add is; empty if there is none."""
    is_identity: bool
    """Whether that value is the one that the branch reads, unchanged."""
    num_channels: int
    channel_axis: int


def blocks_of(found: Discovery) -> Iterator[tuple[Region, int]]:
    """Yield each block of the stages in execution order, with the axis of its channels."""
    for stage in found.stages:
        if stage.entry_block is not None:
            yield stage.entry_block, stage.channel_axis
        for block in stage.blocks:
            yield block, stage.channel_axis


def branches_of(flow: Flow, block: Region, channel_axis: int) -> list[Branch]:
    """Return the branches of `block` in execution order.

    A block without shortcut is one branch; a transformer's block has two.
    """
    found: list[Branch] = []
    for add in spine_of(flow, block):
        sides = _sides(flow, block, add)
        if sides is None:
            continue
        end, shortcut, is_identity = sides
        found.append(
            Branch(
                block=block,
                end=end.name,
                add=add.name,
                shortcut=shortcut.name,
                is_identity=is_identity,
                num_channels=flow.shape(end)[_axis_of(channel_axis)],
                channel_axis=channel_axis,
            )
        )
    if found:
        return found
    return [
        Branch(
            block=block,
            end=block.output,
            add="",
            shortcut="",
            is_identity=False,
            num_channels=block.shape[_axis_of(channel_axis)],
            channel_axis=channel_axis,
        )
    ]


def spine_of(flow: Flow, block: Region) -> list[fx.Node]:
    """Return the fx nodes that each path through `block` passes, in execution order."""
    members = [flow.by_name[name] for name in block.fx_nodes]
    active = [fx_node for fx_node in members if fx_node in flow.activations]
    place = {fx_node: index for index, fx_node in enumerate(active)}
    spine: list[fx.Node] = []
    last_reader = _last_reader(flow.by_name[block.input], place)
    for index, fx_node in enumerate(active):
        if last_reader <= index:  # nothing computed before is read behind this node
            spine.append(fx_node)
        last_reader = max(last_reader, _last_reader(fx_node, place))
    return spine


def _last_reader(fx_node: fx.Node, place: Mapping[fx.Node, int]) -> int:
    return max((place[user] for user in fx_node.users if user in place), default=-1)


def ancestors(flow: Flow, block: Region, fx_node: fx.Node) -> set[fx.Node]:
    """Return the activations that `fx_node` is computed from, itself and the block's input too."""
    inside = {flow.by_name[name] for name in block.fx_nodes} | {flow.by_name[block.input]}
    found: set[fx.Node] = set()
    waiting = [fx_node]
    while waiting:
        one = waiting.pop()
        if one in found or one not in inside:
            continue
        found.add(one)
        if one.name != block.input:
            waiting += flow.inputs(one)
    return found


def _sides(flow: Flow, block: Region, add: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """Return the branch, the shortcut, and whether that is the branch's input; None if no add."""
    if not is_add(add) or add.args[0] is add.args[1]:
        return None
    one, other = (operand for operand in add.args if isinstance(operand, fx.Node))
    if any(operand not in flow.activations for operand in (one, other)):
        return None
    if len({flow.shape(fx_node) for fx_node in (add, one, other)}) != 1:
        return None
    before = {operand: ancestors(flow, block, operand) for operand in (one, other)}
    for end, shortcut in ((one, other), (other, one)):
        if (carried := _carried(flow, shortcut)) in before[end]:
            return end, carried, True
    macs = {
        operand: sum(flow.profile.macs.get(fx_node.name, 0) for fx_node in before[operand])
        for operand in (one, other)
    }
    end, shortcut = (one, other) if macs[one] >= macs[other] else (other, one)
    return end, shortcut, False


def _carried(flow: Flow, fx_node: fx.Node) -> fx.Node:
    """Return the node whose value `fx_node` is, behind any `nn.Identity`."""
    while fx_node.op == "call_module" and isinstance(
        flow.module.get_submodule(str(fx_node.target)), nn.Identity
    ):
        (fx_node,) = flow.inputs(fx_node)
    return fx_node


def _axis_of(channel_axis: int) -> int:
    """Return the axis of the channels in a shape without the batch."""
    return channel_axis - 1 if channel_axis > 0 else channel_axis
