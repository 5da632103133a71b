"""Graphs with one condition a block: equal to the network, and what is skipped is not computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kinds import KINDS, converted
from reference import randomise, randomise_routers
from small import Net, TwoStages
from torch import Tensor, nn

import dggraph
from dggraph.errors import ExportError
from dggraph.exporting.conditional import conditional

FORMS: dict[str, dict[str, Any]] = {
    "node": {},
    "stage": {"router": "stage"},
    "constant": {"router": "constant"},
    "tied": {"router": "tied"},
    "content": {"router": "content"},
    "shrink": {"gate": "shrink"},
    "scaled": {"gate": "scaled", "threshold": 0.0},
    "sigmoid": {"gate": "sigmoid", "init": "scratch"},
    "softmax": {"router": "stage", "gate": "softmax"},
    "groups": {"granularity": 2},
    "channel": {"granularity": "channel", "router": "stage"},
    "pixel": {"granularity": "pixel"},
    "pixel of a stage": {"granularity": "pixel", "router": "stage", "gate": "shrink"},
    "additive": {"aggregation": "additive"},
    "additive by content": {"aggregation": "additive", "router": "content"},
    "window": {"wiring": "window(2)"},
}


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let `torch.cond` be a plain `if`, which takes no compiler; returns what it decided."""
    decided: list[bool] = []

    def cond(runs: Tensor, yes: Callable[..., Any], no: Callable[..., Any], given: Any) -> Any:
        decided.append(bool(runs))
        taken = (yes if runs else no)(*given)
        other = (no if runs else yes)(*given)
        assert [one.shape for one in taken] == [one.shape for one in other]
        assert [one.stride() for one in taken] == [one.stride() for one in other]
        return taken

    monkeypatch.setattr(torch, "cond", cond)
    return decided


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 16, 16) + 2 * torch.randn(count, 3, 1, 1)


def assert_skips_as_the_network(net: Any, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Equal outputs, and as many blocks computed as the path of each image has; returns these."""
    decided, x = one_by_one(monkeypatch), images()
    with torch.no_grad():
        graph = conditional(net, x[:1])
        counts = set()
        for image, path in zip(x.split(1), dggraph.record(net, x).paths, strict=True):
            decided.clear()
            torch.testing.assert_close(graph.module(image), net(image), atol=1e-5, rtol=1e-4)
            useful = path.live_nodes(net.graph)
            if net.plan[0].scope == "stage":
                useful = useful & path.useful_nodes(net.graph)
            assert sum(decided) == len(useful & set(graph.blocks))
            counts.add(sum(decided))
    assert len(decided) == len(graph.blocks) == net.report.num_blocks
    return counts


@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_network(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = dggraph.convert(randomise(Net()), images(1), **FORMS[form]).eval()
    counts = assert_skips_as_the_network(randomise_routers(net, scale=10), monkeypatch)
    assert len(counts) > 1 or form in ("constant", "scaled", "channel")


@pytest.mark.parametrize(
    ("kind", "router"), [*((kind, "node") for kind in KINDS), ("concat", "stage")]
)
def test_every_kind_of_stage(kind: str, router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_skips_as_the_network(converted(kind, router), monkeypatch)


def test_several_stages_and_a_prepared_network(monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomise_routers(dggraph.convert(randomise(TwoStages()), images(1))).eval()
    assert_skips_as_the_network(dggraph.optimize_for_inference(net), monkeypatch)


def test_a_skipped_block_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers are modules of the graph, and what runs is seen at them."""
    one_by_one(monkeypatch)
    net = dggraph.convert(randomise(Net()), images(1), router="stage").eval()
    bias = net.get_submodule("dg_blocks.router_0").bias
    bias.data[[edge.target == "blocks_1" for edge in net.graph.edges("blocks")]] = -9.0
    graph, called = conditional(net, images(1)).module, []
    for index in range(3):
        layer = net.blocks[index].conv1
        layer.register_forward_hook(lambda *_, index=index: called.append(index))
    monkeypatch.setattr(torch, "cond", lambda runs, yes, no, given: (yes if runs else no)(*given))
    with torch.no_grad():
        graph(images(1))
    assert called == [0, 2]


def test_a_stage_that_cannot_skip_is_named() -> None:
    class Mixed(nn.Module):
        """Its blocks read each other's rows: mean over the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.norm(self.conv(x))

    net = dggraph.convert(randomise(Net(Mixed)), images(1)).eval()
    graph = conditional(net, images(1))
    assert graph.blocks == ()
    assert "statistics" in graph.always[0][1]


def test_a_part_whose_name_every_graph_has(tmp_path: Any) -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Conv2d(8, 8, 1)

        def features(self, x: Tensor) -> Tensor:
            return self.graph(super().features(x))

    net = dggraph.convert(randomise(Odd()), images(1)).eval()
    with pytest.raises(ExportError, match="'graph' is a name that every"):
        dggraph.export(net, tmp_path / "net.pt2", format="pt2", mode="skip")
