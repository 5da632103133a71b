"""The analysis of routing: numbers by hand, swaps and closed edges against pinned runs."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from small import Block, Net
from torch import Tensor
from torch.utils.data import Dataset, Subset

import dggraph
from dggraph.data.validation import attributes_of
from dggraph.errors import InputError
from dggraph.evaluation.accuracy import evaluate
from dggraph.evaluation.adjacency_statistics import (
    class_similarities,
    explained_variance,
    path_gain,
    rank_correlation,
)
from dggraph.evaluation.analysis import analyse
from dggraph.graph.analysis import Analysis, Change
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.network import DynamicNetwork
from dggraph.ops.liveness import Topology
from dggraph.views.analysis_page import write_analysis

CLASSES = ("a", "b", "c", "d", "e")


class Coloured(Dataset[tuple[Tensor, int]]):
    """Noise with one colour a class."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(3)
        colours = 3 * torch.randn(5, 3, 1, 1, generator=generator)
        self.labels = torch.arange(count) % 5
        noise = torch.randn(count, 3, 16, 16, generator=generator)
        self.images = (noise + colours[self.labels]).double()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


DATA = Coloured(23)


def routed(*, is_trained: bool = True, granularity: Any = "edge") -> DynamicNetwork:
    torch.manual_seed(0)
    net = dggraph.convert(
        Net(Block, 2).double(),
        torch.zeros(1, 3, 16, 16, dtype=torch.float64),
        router="stage",
        granularity=granularity,
    )
    if is_trained:
        with torch.no_grad():
            for name, parameter in net.lowered.named_parameters():
                if name.startswith("dg_"):
                    parameter.normal_(std=0.7)
    return net


@pytest.fixture(scope="module")
def found() -> Analysis:
    net = routed().train()
    analysis = analyse(net, DATA, CLASSES, batch_size=7)
    assert net.training
    assert float(net.lowered.get_buffer("dg_blocks.threshold")) == 0.5
    return analysis


def test_similarities_by_hand() -> None:
    """The mean is (0, 0). Class 0 has (1, 0) and (0, 1), class 1 (-1, 0) and (0, -1)."""
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    alike = class_similarities(weights, torch.tensor([0, 0, 1, 1]), 3)
    assert alike.within == pytest.approx(0)
    assert alike.between == pytest.approx(-0.5)  # two pairs at -1, two at 0
    assert alike.pairs_KK[0, 1] == pytest.approx(-0.5)
    assert alike.pairs_KK[2].isnan().all()
    same = class_similarities(torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), 2)
    assert (same.within, same.between) == (None, None)


def test_similarities_equal_a_loop_over_pairs() -> None:
    torch.manual_seed(0)
    weights, labels = torch.randn(12, 4, dtype=torch.float64), torch.randint(3, (12,))
    units = torch.nn.functional.normalize(weights - weights.mean(0))
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    within = [float(units[i] @ units[j]) for i, j in pairs if labels[i] == labels[j]]
    between = [float(units[i] @ units[j]) for i, j in pairs if labels[i] != labels[j]]
    alike = class_similarities(weights, labels, 3)
    assert alike.within == pytest.approx(sum(within) / len(within))
    assert alike.between == pytest.approx(sum(between) / len(between))


def test_explained_variance_by_hand() -> None:
    """Between groups with means 1 and 3: 4 of 4; then 1 of 5; then nothing to explain."""
    weights = torch.tensor([[1.0, 0.0, 2.0], [1.0, 2.0, 2.0], [3.0, 1.0, 2.0], [3.0, 3.0, 2.0]])
    shares = explained_variance(weights, torch.tensor([5, 5, 9, 9]))
    assert shares == [pytest.approx(1), pytest.approx(1 / 5), None]


def test_path_gain_by_hand() -> None:
    """v0 -> v1 .5, v0 -> out 2, v1 -> out 3: 2 + .5 * 3."""
    topology = Topology((0, 0, 1), (1, 2, 2))
    assert path_gain(torch.tensor([[0.5, 2.0, 3.0]]), topology).tolist() == [3.5]


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 9], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_an_interval_by_hand() -> None:
    """10 of 100 gained, 30 lost: variance (.4 - .04) / 100."""
    change = Change(accuracy=0.5, gained=0.1, lost=0.3, num_images=100)
    assert change.difference == pytest.approx(-0.2)
    assert change.half_width == pytest.approx(1.96 * 0.06)


def test_own_adjacency_gives_the_network_s_own_answers(found: Analysis) -> None:
    expected = evaluate(routed(), DATA)
    assert found.accuracy == expected.accuracy
    assert found.kept == pytest.approx(expected.kept)
    (own,) = [one for one in found.thresholds if one.is_own]
    assert (own.threshold, own.accuracy) == (0.5, expected.accuracy)


def test_thresholds_are_those_of_evaluations(found: Analysis) -> None:
    for one in found.thresholds[::4]:
        net = routed()
        net.set_threshold(one.threshold)
        expected = evaluate(net, DATA)
        assert one.accuracy == expected.accuracy
        assert one.kept == pytest.approx(expected.kept)


def test_swaps_and_closed_edges_are_pinned_runs(found: Analysis) -> None:
    net = routed().eval()
    with torch.no_grad():
        _, gates = net(DATA.images, return_gates=True)
        weights = gates.weights["blocks"]
        net.set_threshold(0)

        def num_right(pinned: Tensor) -> float:
            with pinned_gates(net, {"blocks": pinned}):
                return float((net(DATA.images).argmax(1) == DATA.labels).double().mean())

        means = torch.stack([weights[DATA.labels == label].mean(0) for label in range(5)])
        assert found.swapped["mean"].accuracy == num_right(weights.mean(0))
        assert found.swapped["class mean"].accuracy == num_right(means[DATA.labels])
        assert found.swapped["static"].accuracy == evaluate_static()
        for place, edge in enumerate(found.edges):
            closed = weights.clone()
            closed[:, place] = 0
            assert edge.closed.accuracy == pytest.approx(num_right(closed))
            assert edge.mean_weight == pytest.approx(float(weights[:, place].mean()))
            assert edge.open_fraction == float((weights[:, place] != 0).double().mean())


def evaluate_static() -> float:
    """The accuracy of the backbone itself."""
    torch.manual_seed(0)
    backbone = Net(Block, 2).double().eval()
    with torch.no_grad():
        return float((backbone(DATA.images).argmax(1) == DATA.labels).double().mean())


def test_every_edge_moved_from_where_its_gate_began(found: Analysis) -> None:
    assert found.never_moved == ()
    assert [edge.start for edge in found.edges] == [float(edge.is_static) for edge in found.edges]
    assert all(0 < edge.mean_move <= edge.largest_move for edge in found.edges)


def test_colours_decide_so_classes_explain(found: Analysis) -> None:
    assert found.within is not None
    assert found.between is not None
    assert found.within > found.between
    moving = [edge for edge in found.edges if edge.deviation > 0.1]
    assert moving
    assert all((edge.explained["class"] or 0) > 3 * found.chance["class"] for edge in moving)
    assert found.chance["class"] == 4 / 22


def test_gains_by_hand(found: Analysis) -> None:
    (stage,) = found.gains
    net = routed().eval()
    with torch.no_grad():
        _, gates = net(DATA.images, return_gates=True)
    w = {
        (edge.source, edge.target): gates.weights["blocks"][:, place]
        for place, edge in enumerate(net.graph.edges("blocks"))
    }
    v0, v1, v2, out = (node.name for node in net.graph.nodes("blocks"))
    one = w[v0, v1]
    two = w[v0, v2] + w[v1, v2] * one
    total = w[v0, out] + w[v1, out] * one + w[v2, out] * two
    assert stage.gain == pytest.approx(float(total.mean()))
    assert found.composite_gain == pytest.approx(stage.gain / stage.static_gain)


def test_an_untrained_network_is_said_to_be_one() -> None:
    fresh = analyse(routed(is_trained=False), DATA, CLASSES)
    assert len(fresh.never_moved) == len(fresh.edges)
    assert {change.difference for change in fresh.swapped.values()} == {0}
    assert fresh.within is None
    assert fresh.composite_gain == 1
    page = write_analysis(fresh, "noise")
    assert "No gate has moved from its start" in page
    assert "Every image gets the same adjacency" in page


def test_accuracy_is_drawn_over_macs(found: Analysis) -> None:
    """Each threshold is a point, with the standard error of a share as its bar."""
    page = write_analysis(found, "noise")
    for one in found.thresholds:
        error = (one.accuracy * (1 - one.accuracy) / found.num_images) ** 0.5
        expected = f"{100 * one.accuracy:.2f} ± {100 * error:.2f} at {one.kept:.4g}"
        assert f"<title>threshold {one.threshold:.3g}: {expected}</title>" in page


@pytest.mark.parametrize("granularity", [4, "channel", "pixel"])
def test_edges_with_several_weights_are_pinned_with_all_of_them(granularity: Any) -> None:
    """Their own adjacency gives the network's own answers, and closing one closes all its parts."""
    net = routed(granularity=granularity)
    found = analyse(net, DATA, CLASSES, batch_size=7)
    assert found.accuracy == evaluate(net, DATA).accuracy
    assert [edge.start for edge in found.edges] == [float(edge.is_static) for edge in found.edges]
    assert found.never_moved == ()
    assert any(edge.divergence > 0 for edge in found.edges)


def test_a_page_says_what_one_number_for_several_weights_is(found: Analysis) -> None:
    """Weights of an edge are told by their mean, and how they differ in one image beside it."""
    net = routed(granularity="pixel")
    with torch.no_grad():
        _, gates = net.eval()(DATA.images, return_gates=True)
    parts = gates.parts["blocks"].flatten(2)
    several = analyse(net, DATA, CLASSES, batch_size=7)
    for place, edge in enumerate(several.edges):
        own = parts[:, place]
        spread = float(own[(own != 0).any(1)].std(1, correction=0).mean())
        assert edge.mean_weight == pytest.approx(float(own.mean()))
        assert edge.spread == pytest.approx(spread)
    page, plain = write_analysis(several, "noise"), write_analysis(found, "noise")
    assert "granularity pixel" in page
    assert "it is their mean" in page
    assert "granularity" not in plain
    assert {edge.spread for edge in found.edges} == {0}


def test_a_threshold_between_those_that_are_tried_is_kept() -> None:
    """Its own adjacency is what the network computes, whatever other thresholds were tried."""
    net = routed()
    net.lowered.get_buffer("dg_blocks.threshold").fill_(0.93)
    assert analyse(net, DATA, CLASSES, batch_size=7).accuracy == evaluate(net, DATA).accuracy
    assert float(net.lowered.get_buffer("dg_blocks.threshold")) == pytest.approx(0.93)


def test_a_threshold_of_those_that_are_tried_is_listed_once() -> None:
    """0.3 is another number in float32."""
    net = routed()
    net.set_threshold(0.3)
    found = analyse(net, DATA, CLASSES, batch_size=7)
    assert [one.threshold for one in found.thresholds] == [place / 10 for place in range(10)]
    (own,) = [one for one in found.thresholds if one.is_own]
    assert (own.threshold, own.accuracy) == (0.3, evaluate(net, DATA).accuracy)


def test_domains_group_images_too() -> None:
    attributes = {
        "rotation": torch.arange(23) % 2,
        "negative": (torch.arange(23) // 2) % 2,
        "always": torch.ones(23, dtype=torch.int64),
    }
    found = analyse(routed(), DATA, CLASSES, attributes=attributes)
    assert list(found.chance) == ["class", "domain", "rotation", "negative"]
    assert found.chance["domain"] == 3 / 22
    assert set(found.edges[0].explained) == set(found.chance)


def test_attributes_follow_their_images() -> None:
    images = Coloured(23)
    images.attributes = {"place": np.arange(23, dtype=np.uint8)}  # type: ignore[attr-defined]
    found = attributes_of(Subset(Subset(images, range(5, 20)), [0, 3]))
    assert {name: values.tolist() for name, values in found.items()} == {"place": [5, 8]}
    assert attributes_of(DATA) == {}


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} images and 1 stages"):
        analyse(routed(), Coloured(count), CLASSES)


def test_a_label_beyond_the_outputs() -> None:
    data = Coloured(10)
    data.labels = data.labels + 4
    with pytest.raises(InputError, match="labels from 4 to 8, but the model has 5 outputs"):
        analyse(routed(), data, CLASSES)


def test_the_page_says_it_and_is_safe(found: Analysis) -> None:
    hostile = "</td><script>alert(1)</script>"
    classes = (dataclasses.replace(found.classes[0], name=hostile), *found.classes[1:])
    page = write_analysis(dataclasses.replace(found, classes=classes), hostile)
    assert "<script" not in page
    assert "alert(1)" in page  # as text
    for edge in found.edges:
        assert page.count(f"{edge.source} → {edge.target}") >= 2
    change = found.swapped["other"]
    assert f"{100 * change.accuracy:.1f}\N{NO-BREAK SPACE}%" in page
    assert "by chance" in page


def test_eval_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pages" / "analysis.html"
    network = ("eval", "dggraph:resnet14_4", "--input-size", "16", "--num-classes", "4")
    data = ("--dataset", "toy_data:make", "--limit", "6", "--analysis", str(file))
    code, printed, _ = run(capsys, *network, *data)
    assert code == 0
    assert "With another adjacency" in printed
    code, printed, _ = run(capsys, *network, *data, "--json")
    document = json.loads(printed)
    assert document["analysis"]["file"] == str(file)
    assert len(document["analysis"]["never_moved"]) == len(document["analysis"]["edges"])
    assert "Worth of edges" in file.read_text()
