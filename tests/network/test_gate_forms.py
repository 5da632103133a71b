"""Every gate and router against a plain loop over images and edges, with its gradients; and what
holds for all of them: exact at the start, one function under every executor, archives.
"""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Block, Net
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError
from dggraph.network.gate_constraints import decide_blocks_, pin_open_
from dggraph.network.network import DynamicNetwork
from dggraph.ops import gating
from dggraph.ops.aggregation import plain_aggregation

GATES = ("anchored", "shrink", "scaled", "softmax")
ROUTERS = ("node", "stage", "constant", "tied", "stage(4, inputs=pool+std, norm=rms)")
PAIRS = [
    (router, gate)
    for router in ROUTERS
    for gate in GATES
    if gate != "softmax" or router not in ("node", "tied")
]
THRESHOLDS = {"anchored": 0.4, "shrink": 0.4, "scaled": 0.05, "softmax": 0.1}


def converted(router: str, gate: str, *, is_trained: bool = True, depth: int = 2) -> DynamicNetwork:
    """A network in float64 whose routers depend on the image."""
    torch.manual_seed(0)
    net = dggraph.convert(
        Net(Block, depth).double(),
        torch.zeros(1, 3, 16, 16, dtype=torch.float64),
        router=router,
        gate=gate,
        threshold=THRESHOLDS[gate],
        residual="keep",
    )
    if is_trained:
        with torch.no_grad():
            for name, parameter in net.lowered.named_parameters():
                if name.startswith("dg_"):
                    parameter.normal_(std=1.5)
        if gate == "softmax":
            net.set_temperature(0.7)
    return net


def images(count: int = 6) -> Tensor:
    torch.manual_seed(1)
    colours = torch.randn(count, 3, 1, 1, dtype=torch.float64)
    return torch.randn(count, 3, 16, 16, dtype=torch.float64) + 2 * colours


def raw_by_hand(gate: nn.Module, static: list[bool], targets: list[int], logits: Tensor) -> Tensor:
    """The weights of one image, (E,), edge by edge."""
    scaled = [logit / float(gate.temperature) for logit in logits]
    kind, raw = type(gate).__name__, []
    for edge, logit in enumerate(scaled):
        if kind == "SoftmaxGate":
            rivals = [
                math.e**other
                for other, target in zip(scaled, targets, strict=True)
                if target == targets[edge]
            ]
            moved = (math.e**logit - 1) / (1 + sum(rivals))
        else:
            scale = 0.1 * torch.sigmoid(gate.growth[0]) if kind == "ScaledGate" else 1
            moved = scale * torch.tanh(logit)
        raw.append(float(static[edge]) + moved)
    return torch.stack(raw)


def loop(net: DynamicNetwork, x: Tensor) -> Tensor:
    """The network with its own modules, one image and one edge at a time, with straight-through
    gradients to every edge whose source is live.
    """
    (stage,) = net.graph.stages
    routing, edges = net.lowered.get_submodule(f"dg_{stage}"), net.graph.edges(stage)
    names = [node.name for node in net.graph.nodes(stage)]
    pairs = [(names.index(edge.source), names.index(edge.target)) for edge in edges]
    tau = float(routing.threshold)
    shrinks = net.blueprint.gate == "shrink"
    model = net.lowered
    outputs = []
    for image in x.split(1):
        features: dict[int, Tensor] = {0: model.stem(image)}
        values, raw = [features[0]], dict[int, Tensor]()
        live, out = [True], len(names) - 1
        for vertex in range(1, out + 1):
            source = vertex - 1
            own = [place for place, pair in enumerate(pairs) if pair[0] == source]
            if net.plan[0].scope == "stage":
                own = list(range(len(pairs))) if vertex == 1 else []
            if own:
                logits = getattr(routing, f"router_{source}")(values[source])[0]
                static, targets = [edges[e].is_static for e in own], [pairs[e][1] for e in own]
                found = raw_by_hand(getattr(routing, f"gate_{source}"), static, targets, logits)
                raw |= dict(zip(own, found, strict=True))
            incoming = [place for place, pair in enumerate(pairs) if pair[1] == vertex]
            opened = {e for e in incoming if live[pairs[e][0]] and raw[e].item() > tau}
            forced = None
            if vertex == out and not opened:
                forced = max(
                    (e for e in incoming if live[pairs[e][0]]), key=lambda e: (raw[e].item(), e)
                )
            total = torch.zeros_like(values[0])
            for e in incoming:
                if not live[pairs[e][0]]:
                    continue
                through = raw[e] / (1 - tau) if shrinks else raw[e]
                applied = (raw[e].item() - tau) / (1 - tau) if shrinks else raw[e].item()
                value = 1.0 if e == forced else applied if e in opened else 0.0
                total = total + (value + through - through.detach()) * values[pairs[e][0]]
            if vertex == out:
                outputs.append(model.head(total))
                break
            live.append(bool(opened))
            values.append(model.blocks[vertex - 1](total) if live[-1] else torch.zeros_like(total))
    return torch.cat(outputs)


@pytest.mark.parametrize(("router", "gate"), PAIRS)
@pytest.mark.parametrize("is_plain", [False, True])
def test_it_is_a_plain_loop_with_its_gradients(router: str, gate: str, is_plain: bool) -> None:
    net = converted(router, gate).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = images()
    learned = dict(net.named_parameters())
    direction = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(6, 5)

    def gradients(output: Tensor) -> list[Tensor | None]:
        found = torch.autograd.grad(
            (output * direction).sum(), list(learned.values()), allow_unused=True
        )
        return list(found)

    expected = loop(net, x)
    wanted = gradients(expected)
    if is_plain:
        with plain_aggregation():
            output = net(x)
    else:
        output = net(x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    for name, found, want in zip(learned, gradients(output), wanted, strict=True):
        if want is not None and found is not None:
            torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-9, msg=name)
        else:
            rest = found if want is None else want
            assert rest is None or not rest.any(), name


@pytest.mark.parametrize(("router", "gate"), PAIRS)
def test_executors_agree(router: str, gate: str) -> None:
    net, x = converted(router, gate).eval(), images()
    with torch.no_grad():
        expected = loop(net, x)
        net.executor = "dense"
        dense, gates = net(x, return_gates=True)
        net.executor = "sparse"
        for _ in range(3):  # the third pass is inlined
            sparse, others = net(x, return_gates=True)
        alone = torch.cat([net(image) for image in x.split(1)])
        fast = dggraph.optimize_for_inference(net)
        for output in (dense, sparse, alone, fast(x), torch.cat([fast(one) for one in x.split(1)])):
            torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert not net.plan[0].dense_only
    torch.testing.assert_close(gates.weights, others.weights, rtol=0, atol=1e-12)
    opened = torch.cat([one.flatten() for one in gates.open.values()])
    assert 0.2 < float(opened.double().mean()) < 1
    torch.testing.assert_close(gates.macs(), others.macs())
    if router != "constant" and gate != "scaled":
        assert len({tuple(row) for row in gates.open["blocks"].tolist()}) > 1


@pytest.mark.parametrize(("router", "gate"), PAIRS)
def test_it_starts_as_the_backbone_and_is_alive(router: str, gate: str) -> None:
    torch.manual_seed(0)
    backbone = Net(Block, 2).eval()
    net = dggraph.convert(
        copy.deepcopy(backbone),
        torch.zeros(1, 3, 16, 16),
        router=router,
        gate=gate,
        threshold=THRESHOLDS[gate],
    )
    x = images(5).float()
    assert torch.equal(net(x), backbone(x))
    net.train()(x).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        late = ("growth", "hidden.weight", "hidden.bias")  # they move from the second step on
        is_read = not ("stage(4" in router and "router_0.weight" in name)
        if not name.endswith(late) and is_read:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("router", "gate"), [PAIRS[1], PAIRS[-1], PAIRS[-2], ("constant", "scaled")]
)
def test_archives_keep_what_was_learned(router: str, gate: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Net(Block, 2)
    net = dggraph.convert(
        copy.deepcopy(backbone), torch.zeros(1, 3, 16, 16), router=router, gate=gate,
        threshold=THRESHOLDS[gate],
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in net.lowered.named_parameters():
            if name.startswith("dg_"):
                parameter.normal_()
    dggraph.save(net, tmp_path / "archive")
    again, x = dggraph.load(tmp_path / "archive", model=backbone), images(3).float()
    assert (again.blueprint.router, again.blueprint.gate) == (router, gate)
    assert torch.equal(again(x), net.eval()(x))


@pytest.mark.parametrize(("router", "gate"), [("node", "shrink"), ("stage", "softmax")])
def test_export_is_the_dense_form(router: str, gate: str) -> None:
    net, x = converted(router, gate).eval(), images()
    program = torch.export.export(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), net(x), rtol=1e-10, atol=1e-10)


def test_a_shrinking_weight_is_continuous_where_its_edge_closes() -> None:
    """And the anchored one jumps from the threshold to 0."""
    jumps = {}
    for gate in ("anchored", "shrink"):
        net, x = converted("constant", gate, is_trained=False).eval(), images(1)
        bias = net.lowered.get_parameter("dg_blocks.router_0.bias")
        outputs = []
        for raw in (0.4 + 1e-6, 0.4 - 1e-6):
            with torch.no_grad():
                bias[1] = math.atanh(raw)  # v0 -> v2, beside v1 -> v2
                outputs.append(net(x))
        jumps[gate] = float((outputs[0] - outputs[1]).abs().max())
    assert jumps["shrink"] < 1e-4
    assert jumps["anchored"] > 1e-2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gate": "softmax"}, "router='node' decides them one source at a time. Use router=.stage"),
        ({"gate": "softmax", "router": "tied"}, "router='tied'"),
        ({"gate": "scaled"}, "moves weights by less than 0.1, so at threshold=0.5 no edge could"),
        ({"gate": "soft"}, "gate='soft' is not one of anchored, .* Did you mean 'softmax'"),
        ({"router": "stage(inputs=std)"}, "inputs=std.: it must be one of pool, pool.std"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dggraph.convert(Net(Block, 2), torch.zeros(1, 3, 16, 16), **given)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("router", "gate"), [("node", "shrink"), ("stage", "softmax")])
def test_a_compiled_training_step_has_the_same_gradients(router: str, gate: str) -> None:
    net, x = converted(router, gate).train(), images()
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def gradients(forward: Any) -> tuple[Tensor, ...]:
        output, gates = forward(x, return_gates=True)
        weights = torch.cat(list(gates.weights.values()), 1)
        return torch.autograd.grad(output.square().mean() + weights.square().sum(), learned)

    expected = gradients(net)
    torch._dynamo.reset()
    found = gradients(torch.compile(net, fullgraph=True, backend="aot_eager"))
    torch._dynamo.reset()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_constant_edges_are_one_plan_for_every_batch() -> None:
    net, x = converted("constant", "anchored").eval(), images()
    for executed in (net, dggraph.optimize_for_inference(net)):
        with torch.no_grad():
            for batch in (x, x[:1], -x, x):
                executed(batch)
        assert executed.last_run == "sparse"
        assert {stage: kept.num_patterns for stage, kept in executed.kept_plans().items()} == {
            "blocks": 1
        }


class Halved(nn.Module):
    """Weights of edges into one node, where there are several, move by half."""

    def __init__(self, static: list[bool], targets: list[int], scale: float = 0.5) -> None:
        super().__init__()
        factors = [scale if targets.count(target) > 1 else 1.0 for target in targets]
        self.register_buffer("anchors", torch.tensor(static, dtype=torch.float32))
        self.register_buffer("factors", torch.tensor(factors))

    def forward(self, logits_BE: Tensor) -> Tensor:
        return self.anchors + self.factors * logits_BE.tanh()  # type: ignore[no-any-return,operator]


def test_registered_gates_may_need_targets_and_have_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gating, "GATES", dict(gating.GATES))
    dggraph.register_gate("halved", Halved, reach="column")
    example = torch.zeros(1, 3, 16, 16)
    net = dggraph.convert(Net(Block, 2), example, router="stage", gate="halved(scale=0.25)")
    assert net.blueprint.gate == "halved(scale=0.25)"
    targets = net.macs_table.stages["blocks"].topology.targets
    expected = [0.25 if targets.count(target) > 1 else 1.0 for target in targets]
    assert net.lowered.get_buffer("dg_blocks.gate_0.factors").tolist() == expected
    with pytest.raises(InputError, match="router='node' decides them one source at a time"):
        dggraph.convert(Net(Block, 2), example, gate="halved")


def test_competing_edges_do_not_decide_blocks() -> None:
    net = dggraph.convert(
        Net(Block, 2), torch.zeros(1, 3, 16, 16), router="stage", gate="softmax", residual="lift"
    )
    with pytest.raises(InputError, match="the gate softmax weighs each against the others"):
        decide_blocks_(net)


@pytest.mark.parametrize("gate", ["shrink", "scaled"])
def test_pinned_blocks_stay_open_behind_every_anchored_gate(gate: str) -> None:
    net = dggraph.convert(
        Net(Block, 2), torch.zeros(1, 3, 16, 16), router="stage", gate=gate, threshold=0.05
    )
    pin_open_(net, ["blocks_0"])
    with torch.no_grad():
        for name, parameter in net.lowered.named_parameters():
            if name.startswith("dg_"):
                parameter.normal_()
        _, gates = net(images().float(), return_gates=True)
    edges = net.graph.edges("blocks")
    pinned = [p for p, e in enumerate(edges) if e.is_static and "blocks_0" in (e.source, e.target)]
    assert pinned
    assert (gates.weights["blocks"][:, pinned] == 1).all()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("is_assigned", [False, True])
def test_weights_loaded_into_an_empty_network_bring_its_anchors(
    gate: str, is_assigned: bool
) -> None:
    """Anchors are in no state dict, and `to_empty` leaves any values in them."""
    net = converted("stage", gate).eval()
    empty = copy.deepcopy(net).to("meta")
    if not is_assigned:
        empty.to_empty(device="cpu")
        for buffer in empty.buffers():
            buffer.fill_(torch.nan if buffer.is_floating_point() else 7)
    empty.load_state_dict(net.state_dict(), assign=is_assigned)
    x = images()
    for executor in ("dense", "sparse"):
        net.executor = empty.executor = executor
        with torch.no_grad():
            assert torch.equal(empty(x), net(x))
