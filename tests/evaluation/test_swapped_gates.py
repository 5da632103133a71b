"""Swapped adjacencies: accuracies equal to a plain loop over the images."""

import pytest
import torch
from reference import randomise_routers
from toy_data import Toy

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.swapped_gates import swap_gates
from dggraph.network.gate_contexts import pinned_gates
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
    found = swap_gates(net, data, batch_size=5, seed=3)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(3)).tolist()
    batches = [order[:5], order[5:]] if num_images == 7 else [order]
    if num_images == 11:
        batches = [order[:5], order[5:]]  # a last batch of one joins the one before
    with torch.no_grad():
        weights = [net(data[i][0][None], return_gates=True)[1].weights for i in range(num_images)]
        right = {"mean": 0, "other": 0}
        means = {
            stage: sum(one[stage] for one in weights) / num_images for stage in net.graph.stages
        }
        for batch in batches:
            for place, index in enumerate(batch):
                net.set_threshold(0)
                for name, pinned in (("mean", means), ("other", weights[batch[place - 1]])):
                    with pinned_gates(net, pinned):
                        answer = int(net(data[index][0][None]).argmax())
                    right[name] += answer == data[index][1]
                net.set_threshold(0.3)
    assert found.own == 1.0
    assert found.mean == right["mean"] / num_images
    assert found.other == right["other"] / num_images
    assert found.num_images == num_images


def test_other_adjacencies_matter_and_the_network_stays(net: DynamicNetwork) -> None:
    data = labelled_by(net, Doubles(60, False, 1))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = swap_gates(net, data, limit=40)
    assert found.num_images == 40
    assert found.own == 1.0
    assert found.other < 1.0
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
    assert (swapped.own, swapped.mean, swapped.other) == (1, 1, 1)


def _told_apart(net: DynamicNetwork, seed: int) -> tuple[torch.Tensor, int] | None:
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        output, gates = net(image, return_gates=True)
        with pinned_gates(net, gates.weights):
            other = net(image)
    label = int(output.argmax())
    return (image[0], label) if label != int(other.argmax()) else None
