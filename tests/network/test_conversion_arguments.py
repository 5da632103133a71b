"""What convert is given: wrong kinds of everything are named, and the report is honest."""

from typing import Any

import pytest
import torch
from small import Block, Net, X
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError, LoweringError, WiringError
from dggraph.graph.wiring import complete, dilated, entry, unite, window

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize(
    ("model", "message"),
    [(None, "not None"), (Net, r"convert\(Net\(\.\.\.\)\)"), (3, "not 3"), ([Net()], "not \\[Net")],
)
def test_models_that_are_none(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dggraph.convert(model, X)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "0.5"}, "threshold='0.5' is not a number"),
        ({"threshold": None}, "threshold=None is not a number"),
        ({"threshold": True}, "threshold=True is not a number"),
        ({"threshold": float("nan")}, "threshold=nan is outside"),
        ({"leaves": Block}, "leaves=.* is not a collection"),
        ({"leaves": ("Block",)}, "leaves=.* is not a collection"),
        ({"gate": ""}, "gate=''"),
        ({"example_input": (1, 3, 32, 32)}, "example_input is tuple"),
        ({"example_input": [X]}, "example_input is list"),
    ],
)
def test_options_of_the_wrong_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dggraph.convert(Net(), **({"example_input": X} | options))


@pytest.mark.parametrize(
    "wiring",
    [
        "window(2.5)",
        "watts_strogatz(3.5, 0.1)",
        "watts_strogatz(2, 0.1, 0.5)",
        "erdos_renyi(0.5, 1.5)",
        "barabasi_albert(1.5)",
    ],
)
def test_counts_are_whole_numbers(wiring: str) -> None:
    with pytest.raises(WiringError, match=r"\d\.5 must be a whole number"):
        dggraph.convert(Net(), X, wiring=wiring)


@pytest.mark.parametrize(
    "wiring",
    [
        None,
        5,
        [("blocks_0", "blocks_1", "x")],
        ["ab"],
        [(1, 2)],
        lambda size: [(0, size)],
        lambda size: [(0, 1, 2)],
        lambda: 1,
    ],
)
def test_wirings_of_the_wrong_kind(wiring: Any) -> None:
    with pytest.raises(WiringError, match="wiring"):
        dggraph.convert(Net(), X, wiring=wiring)


@pytest.mark.parametrize(
    ("wiring", "num_edges"),
    [
        ("window(2)+entry", 15),
        (unite(window(2), entry()), 15),
        ("dilated(2, 2)", 9),
        (dilated(2, 2), 9),
    ],
)
def test_sparse_wirings_start_as_the_backbone(wiring: Any, num_edges: int) -> None:
    model = Net(depth=5).eval()
    net = dggraph.convert(model, X, wiring=wiring)
    assert net.report.num_edges == num_edges
    assert torch.equal(net(X), model(X))
    assert dggraph.render(net.graph).source.count(" -> ") == num_edges


@pytest.mark.parametrize(
    "wiring", ["complete", " complete", "complete()", "complete( )", complete()]
)
def test_the_complete_wiring_however_it_is_written(wiring: Any) -> None:
    for residual in ("auto", "lift"):
        net = dggraph.convert(Net(), X, wiring=wiring, residual=residual)
        assert net.report.stages[0].residual == "lift"
        assert net.report.stages[0].kept_because == ""


class ReluAfter(Block):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Twice(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv1(x)
        return x + self.conv2(x)


@pytest.mark.parametrize(
    ("block", "options", "reason"),
    [
        (ReluAfter, {"residual": "lift"}, "blocks.0 does not end in an identity add"),
        (Twice, {}, "blocks.0 has 2 identity adds, which only residual=lift takes"),
        (Block, {"wiring": "window(2)"}, "the wiring is not complete"),
        (Block, {"residual": "keep"}, "asked for"),
    ],
)
def test_the_report_says_why_residuals_are_kept(
    block: Any, options: dict[str, Any], reason: str
) -> None:
    (stage,) = dggraph.convert(Net(block), X, **options).report.stages
    assert stage.residual == "keep"
    assert stage.kept_because == reason


def test_shares_of_the_macs_by_hand() -> None:
    """8x8 pixels, two 3x3 convolutions of 8 channels a block; the stem feeds the stage and is not a
    block.
    """
    report = dggraph.convert(Net(), X).report
    blocks = 3 * 2 * 64 * 8 * 8 * 9
    assert report.total_macs == blocks + 64 * 3 * 8 * 9 + 8 * 5
    assert report.routed_fraction == report.covered_fraction == blocks / report.total_macs


class Named(Net):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(8, 8, 1))
        self.name = name

    def features(self, x: Tensor) -> Tensor:
        neck: Tensor = self._modules[self.name](super().features(x))  # type: ignore[misc]
        return neck


@pytest.mark.parametrize("name", ["graph", "code", "recompile", "meta"])
def test_names_that_a_graph_module_has(name: str) -> None:
    for model in (Named(name).eval(), nn.Sequential(Named(name)).eval()):
        net = dggraph.convert(model, X)
        assert net.report.num_edges == 10
        assert torch.equal(net(X), model(X))


def test_the_name_that_routers_need() -> None:
    with pytest.raises(LoweringError, match="'dg_blocks'"):
        dggraph.convert(Named("dg_blocks"), X)


def test_lazy_and_lowered_modules_are_refused() -> None:
    with pytest.raises(InputError, match=r"'0\.weight' is lazy"):
        dggraph.convert(nn.Sequential(nn.LazyConv2d(8, 3), Block(), Block()), X)
    with pytest.raises(InputError, match="already converted"):
        dggraph.convert(dggraph.convert(Net(), X).lowered, X)


def test_a_wrong_type_at_run_time_is_named() -> None:
    net = dggraph.convert(Net(), X).eval()
    for x in (X.double(), (X * 255).byte()):
        with pytest.raises(InputError, match=r"takes torch\.float32"):
            net(x)
    with pytest.raises(InputError, match="must be a tensor"):
        net(X.numpy())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(X.bfloat16()).shape == (2, 5)
