"""The trained networks of the package load and answer as they did."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import dggraph
from dggraph.baselines.pretrained import SHIPPED
from dggraph.network.network import DynamicNetwork

ASSETS = Path(dggraph.__file__).parent / "assets"
RECORDED = {
    "fashion_mnist": [
        [0.5229444, -0.5949572, 2.4758184, -0.3333772],
        [0.413939, -0.2816087, 2.1816657, -0.2788281],
    ],
    "object_photos": [
        [0.5537645, 0.0945581, -1.9249802, -1.1301396],
        [0.5529048, 0.1073784, -1.9168738, -1.151215],
    ],
}
"""The first four logits of each of two patterns."""


def patterns(net: DynamicNetwork) -> Tensor:
    """Return two images (2, C, H, W) whose values are the same everywhere."""
    shape = (2, *net.blueprint.input_shape)
    return (torch.arange(torch.Size(shape).numel()) * 97 % 251 / 125 - 1).reshape(shape)


@pytest.fixture(params=SHIPPED)
def net(request: pytest.FixtureRequest) -> DynamicNetwork:
    found = dggraph.from_pretrained(request.param)
    assert isinstance(found, DynamicNetwork)
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_answers_as_recorded(name: str) -> None:
    net = dggraph.from_pretrained(name)
    assert isinstance(net, DynamicNetwork)
    x = patterns(net)
    expected = torch.tensor(RECORDED[name])
    for executor in ("dense", "sparse"):
        net.executor = executor
        with torch.no_grad():
            assert (net(x)[:, :4] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_shipped_network_names_its_classes(net: DynamicNetwork) -> None:
    assert net.labels is not None
    assert net.preprocess is not None
    with torch.no_grad():
        assert net(patterns(net)).shape == (2, len(net.labels))


def test_the_card_has_accuracy_command_and_licence() -> None:
    text = (ASSETS / "object_photos" / "README.md").read_text()
    for part in ('name: "object_photos"', "type: macs_ratio", "dggraph train", "| 83.00 % |"):
        assert part in text
    assert "Not stated" not in text
    assert "missed" not in text


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (ASSETS / name).iterdir()) < 400_000


def test_the_demo_has_nothing_to_warn_of() -> None:
    net = dggraph.from_pretrained("fashion_mnist")
    assert isinstance(net, DynamicNetwork)
    assert net.preprocess is not None
    images = [net.preprocess(path) for path in sorted((ASSETS / "samples").glob("*.png"))]
    report = dggraph.check_gates(net, [torch.cat(images)])
    assert report.num_instances == 20
    assert report.num_paths == 9
    assert report.warnings == ()
