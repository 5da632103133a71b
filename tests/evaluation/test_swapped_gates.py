"""Swapped adjacencies: accuracies equal to a plain loop over the images."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from reference import randomise_routers
from toy_data import Toy

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.swapped_gates import SWAPS, swap_gates
from dggraph.network.gate_contexts import own_thresholds, pinned_gates
from dggraph.network.gates import static_weights
from dggraph.network.network import DynamicNetwork


@pytest.fixture(scope="module")
def net() -> DynamicNetwork:
    torch.manual_seed(0)
    net = dggraph.convert("dggraph:resnet20_4", torch.zeros(1, 3, 16, 16), threshold=0.3)
    net = randomise_routers(net).double().eval()
    data = Doubles(50, False, 2)
    with torch.no_grad():  # answers that differ from image to image
        bias = net.lowered.get_parameter("fc.bias")
        bias -= net(torch.stack([data[i][0] for i in range(50)])).mean(0)
    return net


class Doubles(Toy):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return image.double(), label


def labelled_by(net: DynamicNetwork, data: Toy) -> Toy:
    """With the network's own answers as labels, so that every change of an answer counts."""
    with torch.no_grad():
        data.labels = torch.stack([net(data[i][0][None]).argmax() for i in range(len(data))])
    return data


@pytest.mark.parametrize("num_images", [2, 7, 11])
def test_a_plain_loop_gives_the_same(net: DynamicNetwork, num_images: int) -> None:
    data = labelled_by(net, Doubles(num_images, False, 1))
    found = swap_gates(net, data, swaps=SWAPS, batch_size=5)
    with torch.no_grad():
        weights = [net(data[i][0][None], return_gates=True)[1].weights for i in range(num_images)]
    shuffled = torch.randperm(num_images, generator=torch.Generator().manual_seed(0)).tolist()
    follower = dict(zip(shuffled, shuffled[1:] + shuffled[:1], strict=True))
    groups = {int(label): [i for i in shuffled if data[i][1] == label] for label in data.labels}

    def mean(members: Sequence[int]) -> dict[str, torch.Tensor]:
        return {
            stage: sum(weights[i][stage] for i in members) / len(members)
            for stage in net.graph.stages
        }

    pinned = {
        "mean": lambda i: mean(range(num_images)),
        "class mean": lambda i: mean(groups[int(data.labels[i])]),
        "same class": lambda i: weights[following(groups[int(data.labels[i])], i)],
        "other": lambda i: weights[follower[i]],
        "static": lambda i: static_weights(net.graph),
    }
    assert found.accuracy == 1.0
    assert found.num_images == num_images
    for name in SWAPS:
        own = [answer(net, data[i][0], pinned[name](i)) == data[i][1] for i in range(num_images)]
        assert found.change(name).accuracy == pytest.approx(sum(own) / num_images), name


def following(members: list[int], i: int) -> int:
    return members[(members.index(i) + 1) % len(members)]


def answer(net: DynamicNetwork, image: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> int:
    with torch.no_grad(), own_thresholds(net):
        net.set_threshold(0)
        with pinned_gates(net, weights):
            return int(net(image[None]).argmax())


def test_other_adjacencies_matter_and_the_network_stays(net: DynamicNetwork) -> None:
    data = labelled_by(net, Doubles(60, False, 1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = swap_gates(net, data, limit=40)
    assert found.num_images == 40
    assert found.accuracy == 1.0
    assert found.change("other").accuracy < 1.0
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


def test_one_image_has_no_other(net: DynamicNetwork) -> None:
    with pytest.raises(InputError, match="at least 2"):
        swap_gates(net, Doubles(1, False, 0))


@pytest.mark.parametrize("granularity", ["channel", "pixel"])
def test_edges_with_several_weights_keep_them_all(granularity: str) -> None:
    """Equal images have equal adjacencies, so a swap changes nothing. The image is one that gets
    another answer where each edge has only the largest of its weights.
    """
    net = dggraph.convert(
        "dggraph:resnet14_4",
        torch.zeros(1, 3, 16, 16),
        router="stage",
        granularity=granularity,
        threshold=0.0,
    )
    randomise_routers(net, 3).eval()
    image, label = next(filter(None, (_told_apart(net, seed) for seed in range(200))))
    swapped = swap_gates(net, [(image, label)] * 4)  # type: ignore[arg-type]
    assert swapped.accuracy == 1
    assert [swapped.change(name).accuracy for name in ("mean", "other")] == [1, 1]


def _told_apart(net: DynamicNetwork, seed: int) -> tuple[torch.Tensor, int] | None:
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        output, gates = net(image, return_gates=True)
        with pinned_gates(net, gates.weights):
            other = net(image)
    label = int(output.argmax())
    return (image[0], label) if label != int(other.argmax()) else None
