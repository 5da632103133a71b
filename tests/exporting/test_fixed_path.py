"""One path as a plain static network: equal to the network that is run along it."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from kinds import KINDS, converted
from reference import randomise, randomise_routers
from small import Net
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError
from dggraph.exporting.plain_graphs import plain_graph
from dggraph.network.gate_contexts import own_thresholds, pinned_gates
from dggraph.network.gates import static_weights
from dggraph.ops.aggregation import plain_aggregation


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16) + 2 * torch.randn(count, 3, 1, 1)


def along(net: Any, weights: Mapping[str, Any], x: Tensor) -> Tensor:
    """The network's own output with these weights, computed by the plain expression."""
    given = {stage: torch.as_tensor(one) for stage, one in weights.items()}
    net.executor = "dense"
    with own_thresholds(net), torch.no_grad(), plain_aggregation():
        net.set_threshold(0)
        with pinned_gates(net, given):
            output: Tensor = net(x)
    net.executor = "auto"
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_of_an_image(kind: str) -> None:
    net, x = converted(kind), images()
    names = dict(net.named_parameters())
    for path in dggraph.record(net, x).paths:
        plain = dggraph.static(net, path)
        assert type(plain).__mro__[1].__name__ == "GraphModule"
        with torch.no_grad():
            assert torch.equal(plain(x), along(net, path.weights, x))
        runs = path.live_nodes(net.graph) & path.useful_nodes(net.graph)
        blocks = {node.name: node.module_path for node in net.graph.nodes("layers")[1:-1]}
        for name, place in blocks.items():
            is_there = any(key.startswith(f"{place}.") for key in plain.state_dict())
            assert is_there == (name in runs)
        assert set(dict(plain.named_parameters())) <= set(names)


def test_the_backbone_comes_back_to_the_bit_with_its_keys() -> None:
    backbone, x = randomise(Net()).eval(), images()
    for options in ({}, {"aggregation": "additive"}, {"granularity": "channel"}):
        net = randomise_routers(dggraph.convert(backbone, x[:1], **options)).eval()
        plain = dggraph.static(net, "backbone")
        assert torch.equal(plain(x), backbone(x))
        assert set(plain.state_dict()) == set(backbone.state_dict())
        backbone.load_state_dict(plain.state_dict())


def test_weights_are_copies() -> None:
    net = converted("lifted")
    plain = dggraph.static(net, "backbone")
    before = net.stem[0].weight.clone()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert torch.equal(net.stem[0].weight, before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"router": "stage", "gate": "shrink"},
        {"aggregation": "additive"},
        {"granularity": "channel"},
        {"granularity": "pixel", "gate": "shrink"},
    ],
)
def test_the_mean_of_images(options: dict[str, Any]) -> None:
    net, x = dggraph.convert(randomise(Net()), images(1), **options).eval(), images()
    randomise_routers(net)
    with torch.no_grad():
        _, gates = net(x, return_gates=True)
        mean = {"blocks": gates.all_weights("blocks").mean(0, keepdim=True)}
        torch.testing.assert_close(
            dggraph.static(net, images=x)(x), along(net, mean, x), atol=1e-5, rtol=1e-4
        )


def test_a_constant_router_has_one_path() -> None:
    net, x = dggraph.convert(randomise(Net()), images(1), router="constant").eval(), images()
    randomise_routers(net)
    with torch.no_grad():
        torch.testing.assert_close(dggraph.static(net)(x), net(x), atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match="mean over images, and none were given"):
        dggraph.static(converted("lifted"))


def test_without_an_open_edge_the_rule_for_out_opens_one() -> None:
    net, x, closed = converted("lifted"), images(), {"layers": torch.zeros(10)}
    assert torch.equal(dggraph.static(net, closed)(x), along(net, closed, x))


def test_an_adjacency_matrix_is_read_by_row_and_column() -> None:
    net, x = converted("lifted"), images()
    adjacency = torch.zeros(5, 5)
    adjacency[0, 2] = adjacency[2, 4] = 1
    adjacency[0, 4] = 0.5
    plain = dggraph.static(net, {"layers": adjacency})
    with torch.no_grad():
        entry = net.stem(x)
        branch = net.layers[1]
        body = branch.norm2(branch.conv2(branch.relu(branch.norm1(branch.conv1(entry)))))
        by_hand = net.head((entry * 0.5 + body).mean((2, 3)))
        torch.testing.assert_close(plain(x), by_hand)
    assert not any(key.startswith(("layers.0", "layers.2")) for key in plain.state_dict())


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("average", "neither mean nor backbone"),
        ({}, "stages layers"),
        ({"layers": torch.ones(4)}, r"10 edges and 5 vertices, got weights of shape \(4,\)"),
        ({"layers": torch.ones(5, 5)}, "no candidate edge"),
        (None, r"path is of the type NoneType.*paths\[0\]"),
        ([], "path is of the type list"),
    ],
)
def test_paths_that_do_not_fit_are_refused(path: Any, error: str) -> None:
    net = converted("lifted")
    with pytest.raises(InputError, match=error):
        dggraph.static(net, path)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (images(1)[0], r"at least one, got \(3, 16, 16\)"),
        (images(0), r"at least one, got \(0, 3, 16, 16\)"),
        (images(1).byte(), "the type torch.uint8"),
        ([images(1)], "not list. Prepare image files"),
    ],
)
def test_images_that_are_none_are_refused(given: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        dggraph.static(converted("lifted"), images=given)


def test_only_converted_networks_have_paths() -> None:
    with pytest.raises(InputError, match="takes a converted network, not Net"):
        dggraph.static(Net(), "backbone")  # type: ignore[arg-type]


def test_parameters_have_the_order_of_the_backbone() -> None:
    """Optimisers store their state by the place of a parameter."""

    class Swapped(nn.Module):
        """A block that uses its layers in another order than it names them."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(8, 8, 1)
            self.first = nn.Conv2d(8, 8, 1)
            self.register_buffer("shift", torch.ones(1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(self.first(x).relu() + self.shift)

    backbone = randomise(Net(Swapped))
    plain = dggraph.static(dggraph.convert(backbone, images(1)), "backbone")
    assert list(plain.state_dict()) == list(backbone.state_dict())
    assert [name for name, _ in plain.named_parameters()] == [
        name for name, _ in backbone.named_parameters()
    ]
    assert [name for name, _ in plain.named_modules() if name.count(".") > 1] == [
        name for name, _ in backbone.named_modules() if name.count(".") > 1
    ]


def test_a_write_into_the_input_does_not_reach_other_readers() -> None:
    class Writes(nn.Module):
        """Overwrites its input, which the sum behind it reads too."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.relu_())

    net, x = dggraph.convert(randomise(Net(Writes)), images(1)).eval(), images()
    weights = static_weights(net.graph)
    weights = {stage: torch.ones_like(one) for stage, one in weights.items()}
    plain = dggraph.static(net, weights)
    with torch.no_grad():
        assert torch.equal(plain(x), along(net, weights, x))


def test_the_plain_graph_has_no_bookkeeping() -> None:
    graph, _ = plain_graph(converted("lifted").lowered)
    text = str(graph)
    assert "stage_cache" not in text
    assert "share" not in text
