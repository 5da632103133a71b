"""A static path without a block is the backbone with that block replaced: by nn.Identity, or by
zeros where blocks are concatenated.
"""

import copy
import itertools

import pytest
import torch
from kinds import KINDS
from reference import randomise
from torch import nn

import dggraph
from dggraph.errors import InputError, WiringError
from dggraph.network.block_removal import skipped_weights
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import EXECUTORS, DynamicNetwork


def made(kind: str, router: str = "node") -> tuple[nn.Module, DynamicNetwork]:
    model = randomise(KINDS[kind]()).eval()
    return model, dggraph.convert(model, torch.zeros(1, 3, 16, 16), router=router)


def names(net: DynamicNetwork) -> list[str]:
    return [node.name for node in net.graph.nodes("layers")[1:-1]]


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", ["kept", "lifted", "tokens"])
def test_a_skipped_block_is_an_identity_to_the_bit(kind: str, executor: str, router: str) -> None:
    model, net = made(kind, router)
    net.executor = executor
    x = torch.randn(5, 3, 16, 16)
    for places in [
        chosen for size in range(4) for chosen in itertools.combinations(range(3), size)
    ]:
        without = copy.deepcopy(model)
        for place in places:
            without.layers[place] = nn.Identity()
        weights = skipped_weights(net.graph, "layers", [names(net)[place] for place in places])
        with torch.no_grad(), pinned_gates(net, {"layers": weights}):
            output, gates = net(x, return_gates=True)
            assert torch.equal(output, without(x)), places
        assert torch.equal(gates.weights["layers"], weights.expand(5, -1)), (
            "nothing is left for liveness to close"
        )


def test_a_layer_of_a_growing_concat_gives_zeros() -> None:
    model, net = made("concat")
    x = torch.randn(3, 3, 16, 16)
    for place, layer in enumerate(list(model.layers.values())):
        with (
            torch.no_grad(),
            pinned_gates(
                net, {"layers": skipped_weights(net.graph, "layers", [names(net)[place]])}
            ),
        ):
            found = net(x)
        handle = layer.register_forward_hook(
            lambda _module, _args, output: torch.zeros_like(output)
        )
        with torch.no_grad():
            assert torch.equal(found, model(x))
        handle.remove()


def test_the_edges_of_a_chain_and_of_a_lifted_stage() -> None:
    """Edges by target, then by source: 01 02 12 03 13 23 04 14 24 34, with out the fourth of three
    blocks.
    """
    _, kept = made("kept")
    first, second, third = names(kept)
    assert skipped_weights(kept.graph, "layers", [second]).tolist() == [
        1,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        1,
    ]
    assert skipped_weights(kept.graph, "layers", [second, third]).tolist() == [
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
    ]
    assert skipped_weights(kept.graph, "layers", [first, second, third]).tolist() == [
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
    ]
    _, lifted = made("lifted")
    assert skipped_weights(lifted.graph, "layers", [names(lifted)[1]]).tolist() == [
        1,
        0,
        0,
        1,
        1,
        0,
        1,
        1,
        0,
        1,
    ]
    for net in (kept, lifted):
        assert torch.equal(
            skipped_weights(net.graph, "layers", []), static_weights(net.graph)["layers"]
        )


def test_what_cannot_be_skipped_is_refused_by_name() -> None:
    _, net = made("kept")
    with pytest.raises(
        InputError, match=r"'layers_9' is not a block of stage 'layers', which has layers_0"
    ):
        skipped_weights(net.graph, "layers", ["layers_9"])
    entry = net.graph.nodes("layers")[0].name
    with pytest.raises(InputError, match=f"'{entry}' is not a block"):
        skipped_weights(net.graph, "layers", [entry])
    model = KINDS["kept"]()
    window = dggraph.convert(model, torch.zeros(1, 3, 16, 16), wiring="window(2)")
    assert skipped_weights(window.graph, "layers", ["layers_1"]).sum() == 3, (
        "an edge past one block is within the window"
    )
    with pytest.raises(
        WiringError,
        match=(
            r"out cannot run without layers_1, layers_2: the edge layers_0 -> .*out past them is"
            r" not a candidate"
        ),
    ):
        skipped_weights(window.graph, "layers", ["layers_1", "layers_2"])
