"""Randomly wired stages: RandWire (arXiv 1904.01569).

Shape suffixes: S sources of one node.
"""

from typing import Literal

import torch
from torch import Tensor, fx, nn

from dggraph.baselines.draft import Draft, finish, open_draft
from dggraph.baselines.network import BaselineNetwork
from dggraph.baselines.options import at_least, one_of
from dggraph.compiler.stages import FoundStage
from dggraph.graph.wiring import Wiring, barabasi_albert, erdos_renyi, watts_strogatz
from dggraph.models.registry import LoadedModel

Generator = Literal["watts_strogatz", "erdos_renyi", "barabasi_albert"]


class WeightedSum(nn.Module):
    """The sum of S features, each weighed by the sigmoid of a learned number."""

    def __init__(self, num_sources: int) -> None:
        super().__init__()
        self.logits_S = nn.Parameter(torch.zeros(num_sources))

    def forward(self, *features: Tensor) -> Tensor:
        """Add features of one shape."""
        weights_S = self.logits_S.sigmoid()
        total = features[0] * weights_S[0]
        for place, one in enumerate(features[1:], start=1):
            total = total + one * weights_S[place]
        return total


def average(*features: Tensor) -> Tensor:
    """Return the mean of features of one shape; always a new tensor."""
    total = features[0].clone()
    for one in features[1:]:
        total = total + one
    return total / len(features)


def random_wiring(
    model: nn.Module | str | LoadedModel,
    example_input: Tensor | None = None,
    *,
    generator: Generator = "watts_strogatz",
    k: int = 4,
    p: float = 0.75,
    seed: int = 0,
) -> BaselineNetwork:
    """Wire the blocks of each stage at random (RandWire, arXiv 1904.01569).

    A graph is drawn over the blocks of a stage and oriented forward. A block reads the sum of its
    sources, each weighed by a sigmoid that is the same for every image, or the stage's input if it
    has none. The stage's output is the mean of the blocks that no other block reads. Blocks stay as
    they are, with any shortcut inside them. Stages here have fewer nodes than the paper's 32.

    The network does not start as the backbone.

    Args:
        model: As for `convert`.
        example_input: As for `convert`.
        generator: `watts_strogatz` draws `k` neighbours per block, rewired with probability `p`;
            `erdos_renyi` draws each pair with probability `p`; `barabasi_albert` draws `k` edges
            per new block.
        k: Neighbours, or edges per new block.
        p: A probability.
        seed: Seed of the generator; each stage adds its place.

    Raises:
        InputError: An option is not valid, or the model is not, or no stage has two blocks.
        WiringError: The generator refuses `k` or `p`.
        TraceError: The backbone has data-dependent control flow.
        NothingToRouteError: The backbone has no blocks.

    Example:
        >>> import dggraph
        >>> net = dggraph.baselines.random_wiring("dggraph:resnet20_8", seed=3)
        >>> net.report.exactness
        'no'
    """
    one_of("generator", generator, ("watts_strogatz", "erdos_renyi", "barabasi_albert"))
    at_least("seed", seed, 0)
    draft = open_draft(model, example_input, method="random_wiring")
    for place, stage in enumerate(draft.found.stages):
        wiring = _wiring(generator, k=k, p=p, seed=seed + place)
        _wire_stage_(draft, stage, wiring)
    return finish(
        draft,
        method="random_wiring",
        options={"generator": generator, "k": k, "p": p, "seed": seed},
        exactness="no",
        reason="the blocks of each stage are wired in another way",
    )


def _wiring(generator: Generator, *, k: int, p: float, seed: int) -> Wiring:
    if generator == "watts_strogatz":
        return watts_strogatz(k, p, seed)
    return erdos_renyi(p, seed) if generator == "erdos_renyi" else barabasi_albert(k, seed)


def _wire_stage_(draft: Draft, stage: FoundStage, wiring: Wiring) -> None:
    """Wire the blocks of one stage by `wiring`. In place."""
    blocks = stage.blocks
    if stage.kind != "add" or len(blocks) < 2:
        reason = "its features change shape" if stage.kind != "add" else "it has a single block"
        draft.unchanged.append((blocks[0].path, reason))
        return
    sources: dict[int, list[int]] = {target: [] for target in range(len(blocks))}
    for source, target in wiring(len(blocks)):
        sources[target].append(source)
    outputs: list[fx.Node] = []
    last = draft.by_name[stage.output]
    readers = [user for user in last.users if user.name not in set(blocks[-1].fx_nodes)]
    for place, block in enumerate(blocks):
        read = draft.by_name[block.input]
        inside = [draft.by_name[name] for name in block.fx_nodes]
        first = next(fx_node for fx_node in inside if read in fx_node.all_input_nodes)
        with draft.graph.inserting_before(first):
            if sources[place]:
                feeding = [outputs[source] for source in sorted(sources[place])]
                value = draft.call(block.path, WeightedSum(len(feeding)), feeding)
            else:
                value = draft.graph.call_function(average, (draft.by_name[stage.entry],))
        for fx_node in inside:
            fx_node.replace_input_with(read, value)
        outputs.append(draft.by_name[block.output])
        draft.changed.append(block.path)
    read_by_others = {source for found in sources.values() for source in found}
    ends = [output for place, output in enumerate(outputs) if place not in read_by_others]
    with draft.graph.inserting_after(last):
        merged = draft.graph.call_function(average, tuple(ends))
    for user in readers:
        user.replace_input_with(last, merged)
