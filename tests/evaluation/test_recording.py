"""Recording: real photos on real weights part ways, and output, adjacency, MACs and picture are
what a plain reference says.
"""

import re
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from reference import hooked, randomise_routers

import dggraph
from dggraph.errors import InputError
from dggraph.models.preprocessing import preprocess_image
from dggraph.models.registry import load_model


def picture_edges(source: str, order: list[str]) -> dict[tuple[str, str], float]:
    """The coloured edges of a DOT source, with their widths."""
    found = re.findall(
        r'^\s*n(\d+) -> n(\d+) \[.*class=active color="#0b6e8a" penwidth=([\d.]+)',
        source,
        flags=re.MULTILINE,
    )
    return {(order[int(a)], order[int(b)]): float(width) for a, b, width in found}


@pytest.mark.parametrize("router", ["node", "stage"])
def test_two_photos_part_ways_on_real_weights(mobilenet_checkpoint: Path, router: str) -> None:
    built = load_model("mobilenet_v2", checkpoint=mobilenet_checkpoint)
    assert built.preprocess is not None
    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in ("chelsea", "coffee")]
    x = torch.cat([preprocess_image(photo, built.preprocess) for photo in photos])
    net = randomise_routers(dggraph.convert(built.model, router=router), seed=3)
    recording = dggraph.record(net, x)
    outputs, adjacency = hooked(net, built.model, x)
    patterns = [
        {key: [w != 0 for w in weights] for key, weights in path.weights.items()}
        for path in recording.paths
    ]
    assert patterns[0] != patterns[1]
    for index, path in enumerate(recording.paths):
        assert path.margin > 1e-4
        difference = (recording.output[index] - outputs[index][0]).abs().max()
        assert difference <= 1e-4 * outputs[index].abs().max()
        expected = {
            edge: weight
            for stage in adjacency
            for edge, weight in adjacency[stage][index].items()
            if weight != 0
        }
        drawn = picture_edges(dggraph.render(net.graph, path).source, list(net.graph.nx))
        assert drawn.keys() == expected.keys()
        for edge, weight in expected.items():
            assert drawn[edge] == pytest.approx(min(0.6 + 1.4 * abs(weight), 6), abs=0.01)
        for stage in net.graph.stages:
            order = [node.name for node in net.graph.nodes(stage)]
            for (source, target), weight in adjacency[stage][index].items():
                found = float(
                    recording.adjacency[stage][index][order.index(source), order.index(target)]
                )
                assert found == pytest.approx(weight, abs=2e-4)


def test_record_restores_the_mode_and_needs_images() -> None:
    net = dggraph.convert("resnet18", torch.rand(1, 3, 64, 64)).train()
    net.lowered.layer1.eval()
    before = {name: module.training for name, module in net.named_modules()}
    dggraph.record(net, torch.rand(2, 3, 64, 64))
    assert before == {name: module.training for name, module in net.named_modules()}
    with pytest.raises(InputError, match="batch"):
        dggraph.record(net, torch.rand(3, 64, 64))
    with pytest.raises(InputError, match="no images to record: the list is empty"):
        dggraph.record(net, [])
    with pytest.raises(InputError, match="batch_size"):
        dggraph.record(net, torch.rand(1, 3, 64, 64), batch_size=0)
