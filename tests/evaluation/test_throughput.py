"""Static and dynamic networks on batches: what is compared with what, by a clock of our own."""

import pytest
import torch
from small import Net, X
from torch import nn

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.throughput import NAMES, Contestants, path_facts
from dggraph.network.gate_contexts import pinned_gates
from dggraph.ops import stage_costs
from dggraph.ops.stage_costs import WAYS

SECONDS = {"static": 4.0, "inlined": 2.0, "dynamic": 3.0}
"""What a pass takes on the first batch; on the others it takes one second more."""


class Clock:
    """Seconds that pass when a network says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ticking(nn.Module):
    """Takes its seconds of `clock`, and does nothing else."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x: torch.Tensor) -> None:
        half = 0.5 if stage_costs._FORCED.get() == "groups" else 1.0
        self.clock.now += half * self.seconds + float(x.any())


@pytest.fixture(scope="module")
def net() -> dggraph.DynamicNetwork:
    return dggraph.convert(Net(), X).eval()


def test_every_form_runs_the_same_function(net: dggraph.DynamicNetwork) -> None:
    made = Contestants(net, Net())
    expected = net(X)
    for form, models in made.forms.items():
        for name in NAMES:
            output = models[name](X)
            output = output[0] if isinstance(output, tuple) else output
            assert torch.allclose(output, expected, rtol=1e-4, atol=1e-5), (form, name)


def test_ratios_are_of_summed_times(net: dggraph.DynamicNetwork) -> None:
    made, clock = Contestants(net, Net()), Clock()
    for form in made.forms:
        made.forms[form] = {name: Ticking(clock, SECONDS[name]) for name in NAMES}
    with torch.no_grad():
        made.dynamic["optimised"](X)
        net(X)
    done: list[tuple[int, int]] = []
    batches = [torch.zeros_like(X), torch.ones_like(X), torch.ones_like(X)]
    plain, prepared = made.compare(
        batches, ways=WAYS, rounds=3, clock=clock, progress=lambda *now: done.append(now)
    )
    assert (plain.form, prepared.form) == ("plain", "optimised")
    assert done == [(number, 10) for number in range(1, 11)]
    for found in (plain, prepared):
        assert (found.batch_size, found.executor) == (2, "sparse")
        sums = {name: 3 * seconds + 2 for name, seconds in SECONDS.items()}
        for name in NAMES:
            speed = found.speed(name)
            assert speed.ratio == pytest.approx(sums[name] / sums["static"])
            assert speed.low == pytest.approx(speed.high)
            assert speed.images_per_second == pytest.approx(6 / sums[name])
            assert speed.p50 == speed.p99 == SECONDS[name] + 1
            assert speed.is_reliable
        assert found.over_inlined == pytest.approx(11 / 8)
        assert found.ways == {"groups": pytest.approx(6.5 / 11), "rows": pytest.approx(1)}
        assert found.regret == pytest.approx(1 - 6.5 / 11)


@pytest.mark.parametrize(
    ("batches", "rounds", "message"),
    [
        ([X], 2, "rounds=2.*at least 3"),
        ([], 3, "no images"),
        ([X, X[:1]], 3, r"batches of \[1, 2\].*one size"),
    ],
)
def test_too_little_to_compare_is_an_error(
    net: dggraph.DynamicNetwork, batches: list[torch.Tensor], rounds: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Contestants(net, Net()).compare(batches, rounds=rounds)


def test_how_far_apart_paths_are(net: dggraph.DynamicNetwork) -> None:
    (stage,) = net.graph.stages
    num_edges = len(net.graph.edges(stage))
    open_E, fewer_E = torch.ones(num_edges), torch.zeros(num_edges)
    fewer_E[0] = 1
    with pinned_gates(net, {stage: torch.stack([open_E, open_E, fewer_E, open_E])}):
        facts = path_facts(net, [torch.cat([X, X])])
    assert facts.num_paths == 2
    assert facts.shared == {stage: 0.75}
    assert facts.kept[0] == facts.kept[1] == facts.kept[3] > 1 > facts.kept[2]


def test_a_network_without_stages_has_no_paths() -> None:
    net = dggraph.convert(Net(), X, stages={}, allow_static=True)
    with pytest.raises(InputError, match="this Net has no stages"):
        path_facts(net, [X])
