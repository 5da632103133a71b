"""Executors: dense = sparse = one instance at a time, skipped work is really not done, and bad
gates are named.
"""

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from random_nets import CHANNELS, SIDE, Net, Tokens
from reference import randomise, randomise_routers
from routed import run
from torch import Tensor, nn

import dggraph
from dggraph.errors import GateError, InputError
from dggraph.network.gate_contexts import pinned_gates
from dggraph.network.gates import static_weights

EXAMPLES = 200


@cache
def converted(number: int) -> tuple[Any, str]:
    """A random network; the kinds take turns, everything else is seeded by `number`."""
    choose = chooser(number)
    kind = ("kept", "lifted", "concat", "adapter", "tokens")[number % 5]
    depth, dtype = choose(3, 4, 5), choose(torch.float64, torch.float32)
    model = (
        randomise(Tokens(depth) if kind == "tokens" else Net(kind, depth), number).to(dtype).eval()
    )
    wiring = (
        "complete"
        if kind in ("lifted", "concat", "tokens")
        else choose(
            "complete",
            "window(2)",
            "window(1)+entry",
            "dilated(2, 2)",
            f"erdos_renyi(0.5, {number})",
        )
    )
    example = torch.zeros(1, 3, SIDE, SIDE, dtype=dtype)
    return dggraph.convert(
        model, example, wiring=wiring, router=choose("node", "stage"), allow_static=True
    ), kind


def build(number: int) -> tuple[Any, Tensor, str]:
    """One of the random networks with random routers of its own, and a batch for it."""
    (net, kind), choose = converted(number // 4), chooser(number)
    randomise_routers(net, number)
    bias = choose(0.0, 0.0, 0.0, -0.7, 1.0, -50.0, 50.0)
    with torch.no_grad():
        for stage in net.graph.stages:
            for name, parameter in net.lowered.get_submodule(f"dg_{stage}").named_parameters():
                if name.endswith("bias"):
                    parameter.add_(bias)
    dtype = net.lowered.stem.weight.dtype
    x = torch.randn(
        choose(4, 4, 4, 1, 0),
        3,
        SIDE,
        SIDE,
        dtype=dtype,
        generator=torch.Generator(torch.get_default_device()).manual_seed(number),
    )
    return net, x, f"{kind}, bias {bias:g}, batch {len(x)}"


def chooser(number: int) -> Any:
    """A function that picks one of its arguments, seeded."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(number)
    return lambda *options: options[int(torch.randint(len(options), (), generator=generator))]


def test_executors_agree_on_random_networks() -> None:
    """Instances whose margin is at most 1e-4 may take another path and are left out, and
    counted.
    """
    seen: Counter[str] = Counter()
    for number in range(EXAMPLES):
        net, x, what = build(number)
        tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
        dense, dense_gates = run(net, x, "dense")
        sparse, sparse_gates = run(net, x, "sparse")
        assert dense.shape == sparse.shape == (len(x), 5), what
        seen[f"batch {len(x)}"] += 1
        if len(x) == 0:
            continue
        recording = dggraph.record(net, x)
        clear = [i for i, path in enumerate(recording.paths) if path.margin > 1e-4]
        seen["near tie"] += len(x) - len(clear)
        if not clear:
            continue
        scale = float(dense[clear].abs().max())
        assert float((sparse - dense)[clear].abs().max()) <= tolerance * scale, what
        assert float((recording.output - dense)[clear].abs().max()) <= tolerance * scale, what
        for stage, weights in dense_gates.weights.items():
            torch.testing.assert_close(
                sparse_gates.weights[stage][clear],
                weights[clear],
                rtol=10 * tolerance,
                atol=10 * tolerance,
            )
            assert torch.equal(sparse_gates.weights[stage][clear] != 0, weights[clear] != 0), what
            open_edges = weights != 0
            seen["all open"] += int(open_edges.all(1).sum())
            seen["fewest open"] += int((open_edges.sum(1) == 1).sum())
            seen["paths differ"] += int((open_edges[0] != open_edges).any())
            seen["dead node"] += any(
                len(path.live_nodes(net.graph)) < len(net.graph.nodes(stage))
                for path in recording.paths
            )
    for kind, least in {
        "batch 0": 24,
        "batch 1": 24,
        "all open": 24,
        "fewest open": 24,
        "paths differ": 58,
        "dead node": 58,
    }.items():
        assert seen[kind] >= least, seen
    assert seen["near tie"] <= 7, seen


def test_an_error_while_gates_are_pinned_leaves_none_pinned() -> None:
    net = randomise_routers(dggraph.convert(Net("kept", 3), torch.zeros(1, 3, SIDE, SIDE))).eval()
    weights, x = static_weights(net.graph), torch.randn(2, 3, SIDE, SIDE)
    expected = net(x)
    with pytest.raises(KeyError, match="nowhere"), pinned_gates(net, weights | {"nowhere": x}):
        pass
    with pytest.raises(ZeroDivisionError, match="division"), pinned_gates(net, weights):
        _ = 1 / 0
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("router", ["node", "stage"])
def test_weights_at_the_threshold_are_closed_by_every_executor(router: str) -> None:
    model = randomise(Net("kept", 4)).eval()
    net = dggraph.convert(model, torch.zeros(1, 3, SIDE, SIDE), router=router)
    (stage,) = net.graph.stages
    ties = torch.full((3, len(net.graph.edges(stage))), 0.5)
    ties[1, ::2] = 0.75
    x = torch.randn(3, 3, SIDE, SIDE)
    with pinned_gates(net, {stage: ties}):
        dense, dense_gates = run(net, x, "dense")
        sparse, sparse_gates = run(net, x, "sparse")
    torch.testing.assert_close(dense, sparse, rtol=1e-5, atol=1e-5)
    assert torch.equal(dense_gates.weights[stage], sparse_gates.weights[stage])
    assert (dense_gates.weights[stage][0] != 0).sum() == 1, (
        "only the edge that opens where nothing reaches out"
    )


def rows_seen(net: Any, path: str) -> list[int]:
    """The batch sizes that the module at `path` is called with from now on."""
    seen: list[int] = []
    net.lowered.get_submodule(path).register_forward_pre_hook(
        lambda _module, args: seen.append(len(args[0]))
    )
    return seen


@pytest.mark.parametrize("router", ["node", "stage"])
def test_work_is_really_skipped(router: str) -> None:
    """By hand: the first of three instances closes v1, the second skips v2, the third takes all; v1
    -> nothing but v2.
    """
    net = dggraph.convert(
        randomise(Net("kept", 3)).eval(), torch.zeros(1, 3, SIDE, SIDE), router=router
    )
    (stage,) = net.graph.stages
    places = {(e.source, e.target): i for i, e in enumerate(net.graph.edges(stage))}
    v0, v1, v2, v3, _ = (node.name for node in net.graph.nodes(stage))
    weights = static_weights(net.graph)[stage].repeat(3, 1)
    weights[0, places[v0, v1]], weights[0, places[v0, v2]] = 0, 0.9
    weights[1, places[v1, v2]], weights[1, places[v0, v3]] = 0, 0.8
    net.executor = "sparse"
    calls = {index: rows_seen(net, f"body.{index}.first") for index in range(3)}
    with torch.no_grad(), pinned_gates(net, {stage: weights}):
        net(torch.randn(3, 3, SIDE, SIDE))
    # The second instance reaches v1, which leads nowhere: a stage router knows, node routers know
    # too late.
    assert calls == {0: [1 if router == "stage" else 2], 1: [2], 2: [3]}


def test_a_dead_block_is_never_called_and_a_whole_batch_is_not_copied() -> None:
    net = dggraph.convert(
        randomise(Net("kept", 3)).eval(), torch.zeros(1, 3, SIDE, SIDE), router="stage"
    )
    (stage,) = net.graph.stages
    net.executor = "sparse"
    inputs: list[Tensor] = []
    net.lowered.body[1].first.register_forward_pre_hook(
        lambda _module, args: inputs.append(args[0])
    )
    outputs: list[Tensor] = []
    net.lowered.body[0].act.register_forward_hook(
        lambda _module, _args, output: outputs.append(output)
    )
    with torch.no_grad():
        net(torch.randn(3, 3, SIDE, SIDE))
    assert inputs[0].data_ptr() == outputs[-1].data_ptr(), (
        "one source of weight 1 for every instance is handed on as it is"
    )
    only_out = torch.zeros(len(net.graph.edges(stage)))
    calls = [rows_seen(net, f"body.{index}.first") for index in range(3)]
    with torch.no_grad(), pinned_gates(net, {stage: only_out}):
        net(torch.randn(3, 3, SIDE, SIDE))
    assert calls == [[], [], []], "v0 alone is live, so its edge to out opens"


class InPlace(nn.Module):
    """Overwrites its input at once."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.act(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("router", ["node", "stage"])
def test_blocks_that_overwrite_their_input_get_one_of_their_own(router: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 1), *(InPlace() for _ in range(4)), nn.ReLU(inplace=True)
    )
    net = dggraph.convert(randomise(model).eval(), torch.zeros(1, 3, SIDE, SIDE), router=router)
    assert all(block.writes_input for stage in net.plan for block in stage.blocks)
    assert net.plan[0].writes_output
    x = torch.randn(3, 3, SIDE, SIDE)
    assert torch.equal(run(net, x, "sparse")[0], model(x))
    randomise_routers(net, 2)
    torch.testing.assert_close(
        run(net, x, "sparse")[0], run(net, x, "dense")[0], rtol=1e-5, atol=1e-5
    )


def test_sizes_change_freely() -> None:
    net = randomise_routers(
        dggraph.convert("mobilenet_v2", torch.zeros(1, 3, 64, 64), router="stage")
    ).eval()
    for batch, height, width in ((2, 64, 64), (5, 96, 64), (1, 50, 70)):
        x = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(
            run(net, x, "sparse")[0], run(net, x, "dense")[0], rtol=1e-4, atol=1e-4
        )


def test_sparse_only_in_eval_without_gradients() -> None:
    net = dggraph.convert(randomise(Net("kept", 3)), torch.zeros(1, 3, SIDE, SIDE)).eval()
    net.executor, net._inliner = "sparse", None
    x = torch.randn(2, 3, SIDE, SIDE)
    net(x).sum().backward()
    assert net.lowered.stem.weight.grad is not None
    with torch.no_grad():
        net.train()(x)
    assert net._inliner is None
    with torch.no_grad():
        net.eval()(x)
    assert net._inliner is not None
    with pytest.raises(InputError, match="executor='fast' is not one of auto, sparse, dense"):
        net.executor = "fast"


def test_a_swapped_head_and_a_copy_count() -> None:
    import copy

    net = randomise_routers(
        dggraph.convert(randomise(Net("kept", 3)), torch.zeros(1, 3, SIDE, SIDE))
    ).eval()
    x = torch.randn(2, 3, SIDE, SIDE)
    run(net, x, "sparse")
    net.lowered.head = nn.Conv2d(CHANNELS, 2, 1)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        twin.lowered.head.weight.zero_()
    assert run(net, x, "sparse")[0].shape == (2, 2)
    torch.testing.assert_close(
        run(net, x, "sparse")[0], run(net, x, "dense")[0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        run(twin, x, "sparse")[0], twin.lowered.head.bias.detach().expand(2, 2)
    )


@pytest.mark.parametrize("router", ["node", "stage"])
def test_nan_names_the_node(router: str) -> None:
    net = dggraph.convert(
        randomise(Net("kept", 3)), torch.zeros(1, 3, SIDE, SIDE), router=router
    ).eval()
    (stage,) = net.graph.stages
    with torch.no_grad():
        net.lowered.get_submodule(f"dg_{stage}").router_0.bias[0] = torch.nan
        with pytest.raises(GateError, match=r"body_in -> body_0 is NaN for instance 0"):
            net(torch.randn(2, 3, SIDE, SIDE))


def test_the_network_says_which_executor_ran() -> None:
    net, x = dggraph.convert("dggraph:resnet8_4").eval(), torch.rand(2, 3, 32, 32)
    assert "executor='auto'" in repr(net)
    assert "weights random" in repr(net)
    with torch.no_grad():
        net(x)
        assert net.last_run == "sparse"
        assert "last run sparse" in repr(net)
        net.executor = "dense"
        net(x)
        assert net.last_run == "dense"
    net.executor = "auto"
    net(x)
    assert net.last_run == "dense: gradients are on"
    net.train()(x)
    assert net.last_run == "dense: the network is in train mode"


def test_an_explicit_sparse_says_why_it_skipped_nothing() -> None:
    net, x = dggraph.convert("dggraph:resnet8_4").eval(), torch.rand(2, 3, 32, 32)
    net.executor = "sparse"
    with torch.no_grad():
        expected = net(x)
        assert net.last_run == "sparse"
    assert torch.equal(net(x), expected)
    assert net.last_run == "dense: gradients are on"
    assert "executor='sparse', last run dense: gradients are on" in repr(net)
