"""Hyper-connections against a plain loop over streams, and random wiring against a plain loop over
blocks.
"""

import pytest
import torch
from small import Net, X
from torch import Tensor, nn

import dggraph
from dggraph.baselines import hyper_connections, random_wiring, static_edges
from dggraph.errors import InputError
from dggraph.graph.wiring import watts_strogatz


def shaken(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return net.double().eval()


def branch_of(block: nn.Module, x: Tensor) -> Tensor:
    return block.conv2(torch.relu(block.norm(block.conv1(x))))


@pytest.mark.parametrize("form", ["static", "dynamic"])
@torch.no_grad()
def test_streams_are_a_plain_loop_over_streams(form: str) -> None:
    torch.manual_seed(0)
    net = shaken(hyper_connections(Net(depth=3), X, streams=3, form=form))
    x = X.double()
    for image, output in zip(x, net(x), strict=True):
        streams = [net.stem(image[None])] * 3
        for index in range(3):
            own = net.get_submodule(f"dg_method.blocks_{index}")
            mix, write = own.mix.clone(), own.write.clone()
            if form == "dynamic":
                for place, stream in enumerate(streams):
                    pooled = stream.mean((2, 3))[0]
                    normed = (
                        pooled / (pooled.square().mean() + torch.finfo(pooled.dtype).eps).sqrt()
                    )
                    added = (own.dynamic.weight @ normed).tanh()
                    mix[place] += own.mix_scale * added[:4]
                    write[place] += own.write_scale * added[4]
            read = sum(streams[place] * mix[place, 0] for place in range(3))
            answer = branch_of(net.blocks[index], read)
            streams = [
                sum(streams[place] * mix[place, 1 + to] for place in range(3)) + answer * write[to]
                for to in range(3)
            ]
        assert torch.allclose(output, net.head(sum(streams) / 3)[0], atol=1e-10)


@torch.no_grad()
def test_untrained_streams_are_the_backbone_bitwise_with_a_relu_behind_the_add() -> None:
    torch.manual_seed(0)
    for form in ("static", "dynamic"):
        net = hyper_connections("dggraph:resnet20_8", streams=3, form=form)
        assert net.report.exactness == "to the bit"
        assert net.report.max_difference == 0
        assert net.report.changed[0] == "layer1.0"


@torch.no_grad()
def test_random_wiring_is_a_plain_loop_over_blocks() -> None:
    torch.manual_seed(0)
    backbone = Net(depth=5)
    net = shaken(random_wiring(backbone, X, k=2, p=0.5, seed=4))
    edges = list(watts_strogatz(2, 0.5, 4)(5))
    entry = net.stem(X.double())
    outputs: list[Tensor] = []
    for target in range(5):
        sources = sorted(source for source, to in edges if to == target)
        z = entry
        if sources:
            logits = net.get_submodule(f"dg_method.blocks_{target}").logits_S
            z = sum(
                outputs[source] * logits[place].sigmoid() for place, source in enumerate(sources)
            )
        outputs.append(z + branch_of(net.blocks[target], z))
    ends = [outputs[node] for node in range(5) if node not in {source for source, _ in edges}]
    expected = net.head(sum(ends) / len(ends))
    assert torch.allclose(net(X.double()), expected, atol=1e-10)


@pytest.mark.parametrize("generator", ["watts_strogatz", "erdos_renyi", "barabasi_albert"])
def test_one_seed_gives_one_wiring_and_another_one_another(generator: str) -> None:
    def drawn(seed: int) -> str:
        net = random_wiring(Net(depth=6), X, generator=generator, k=2, p=0.5, seed=seed)
        return str(net.lowered.graph)

    assert drawn(0) == drawn(0)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_a_stage_of_one_block_has_nothing_to_wire() -> None:
    net = random_wiring("dggraph:resnet14_4")
    assert net.report.changed == ("layer1.0", "layer1.1")
    assert ("layer2.1", "it has a single block") in net.report.unchanged
    with pytest.raises(InputError, match="generator='ring' is not one of watts_strogatz"):
        random_wiring("dggraph:resnet14_4", generator="ring")


def test_stages_without_residual_blocks_keep_one_stream() -> None:
    with pytest.raises(InputError, match="hyper_connections found nothing to change in VGG"):
        hyper_connections("vgg11", torch.zeros(1, 3, 32, 32))


@torch.no_grad()
def test_static_edges_are_a_converted_network_whose_edges_depend_on_no_image() -> None:
    torch.manual_seed(0)
    net = static_edges("dggraph:resnet14_4").eval()
    assert isinstance(net, dggraph.DynamicNetwork)
    x = torch.randn(3, 3, 32, 32)
    for parameter in net.get_submodule("dg_layer1").parameters():
        parameter.uniform_(0.1, 0.4)
    _, gates = net(x, return_gates=True)
    weights = gates.weights["layer1"]
    assert bool((weights == weights[:1]).all())
    assert len(weights[0].unique()) > 1
