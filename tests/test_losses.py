"""Losses on gates: the value is the meter's, the gradient that of the expected MACs, and training
with it gets where it should.
"""

import copy
import itertools
import math
import random
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from reference import randomise_routers
from routed import convert, images, train_routers
from torch import Tensor, nn

import dggraph
from dggraph.errors import InputError
from dggraph.network.gates import Gates
from dggraph.network.network import DynamicNetwork
from dggraph.ops.liveness import Topology
from dggraph.ops.macs import TEMPERATURE, MacsTable, StageMacs, open_probabilities, path_macs

KINDS = ["kept", "lifted", "concat", "adapter"]
ROUTERS = ["node", "stage"]


def complete(num_blocks: int) -> Topology:
    pairs = [(source, target) for target in range(1, num_blocks + 2) for source in range(target)]
    return Topology(*(tuple(ends) for ends in zip(*pairs, strict=True)))


def caterpillar(num_blocks: int) -> Topology:
    """A chain, with an edge from v0 to every block and one from every block to `out`: no two
    sources share an edge.
    """
    pairs = [
        (source, target)
        for target in range(1, num_blocks + 1)
        for source in sorted({0, target - 1})
    ]
    pairs += [(source, num_blocks + 1) for source in range(num_blocks + 1)]
    return Topology(*(tuple(ends) for ends in zip(*pairs, strict=True)))


def table_of(topology: Topology, is_useful_only: bool) -> MacsTable:
    numbers = random.Random(3)
    vertices = tuple(numbers.randrange(50, 100) for _ in range(topology.num_vertices - 1))
    edges = tuple(numbers.randrange(1, 9) for _ in topology.sources)
    stage = StageMacs(topology=topology, vertices=(*vertices, 0), edges=edges)
    return MacsTable(
        fixed=100, static=100 + sum(vertices), is_useful_only=is_useful_only, stages={"s": stage}
    )


def count_macs(opens: tuple[int, ...], table: MacsTable) -> int:
    """MACs of one pattern, written again with sets."""
    stage = table.stages["s"]
    edges = [
        (a, b, cost)
        for a, b, cost, is_open in zip(*stage.topology, stage.edges, opens, strict=True)
        if is_open
    ]
    last = stage.topology.num_vertices - 1
    live, leads = {0}, {last}
    for target in range(1, last):
        live |= {target for a, b, _ in edges if b == target and a in live}
    for source in range(last - 1, 0, -1):
        leads |= {source for a, b, _ in edges if a == source and b in leads}
    if not table.is_useful_only:
        leads = set(range(1, last + 1))
    runs = {0} | live & leads
    return (
        table.fixed
        + sum(stage.vertices[v] for v in runs)
        + sum(cost for a, b, cost in edges if a in live and b in leads)
    )


def mean_by_enumeration(chances: list[float], table: MacsTable) -> float:
    return sum(
        math.prod(p if is_open else 1 - p for p, is_open in zip(chances, opens, strict=True))
        * count_macs(opens, table)
        for opens in itertools.product((0, 1), repeat=len(chances))
    )


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_training", [True, False])
def test_the_value_is_what_the_meter_says(kind: str, router: str, is_training: bool) -> None:
    _, net = convert(kind, router)
    different: set[float] = set()
    for seed in range(5):
        randomise_routers(net, seed)
        x = images(6, seed)
        _, gates = net.train(is_training)(x, return_gates=True)
        recording = dggraph.record(net, x, batch_size=6)
        metered = recording.macs.double() / net.macs_table.static
        values = dggraph.losses.kept(gates).detach()
        assert (values - metered).abs().max() < 1e-12
        loss = dggraph.losses.budget(gates, 0.9).detach()
        assert abs(loss - (metered.mean() - 0.9) ** 2) < 1e-12
        different |= set(values.tolist())
    assert len(different) > 3


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_edge_feels_the_budget_at_the_start(kind: str, router: str) -> None:
    """An anchored net starts on one path; the loss must move each of its edges from there, whatever
    the image.
    """
    _, net = convert(kind, router)
    _, gates = net.train()(images(5, 0), return_gates=True)
    (raw,) = gates.raw.values()
    (gradient,) = torch.autograd.grad(dggraph.losses.budget(gates, 0.6), raw)
    assert gradient.isfinite().all()
    assert (gradient.abs() > 1e-6).all()
    assert (gradient > 0).all(), "above the target every edge is pushed to close"


@pytest.mark.parametrize("is_useful_only", [False, True])
@pytest.mark.parametrize("topology", [complete(4), caterpillar(4)], ids=["complete", "caterpillar"])
def test_gradient_of_expected_macs(topology: Topology, is_useful_only: bool) -> None:
    table = table_of(topology, is_useful_only)
    raw = (0.5 + 0.2 * torch.randn(3, len(topology.sources), dtype=torch.float64)).requires_grad_()

    def expected(raw_BE: Tensor) -> Tensor:
        return path_macs({"s": torch.sigmoid((raw_BE - 0.5) / TEMPERATURE)}, table)

    assert torch.autograd.gradcheck(expected, raw)

    open_raw = (
        0.5 + 0.2 * torch.rand(3, len(topology.sources), dtype=torch.float64)
    ).requires_grad_()
    gates = Gates({"s": open_raw.detach()}, {"s": open_raw}, {"s": torch.tensor(0.5)}, table)
    (ours,) = torch.autograd.grad(dggraph.losses.kept(gates).sum(), open_raw)
    (theirs,) = torch.autograd.grad(expected(open_raw).sum(), open_raw)
    torch.testing.assert_close(ours * table.static, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_useful_only", [False, True])
def test_expected_macs_by_enumeration(is_useful_only: bool) -> None:
    """Exact where no two sources of a node share an uncertain edge; elsewhere never too low, and
    not far off.
    """
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    for topology, is_exact in [
        (complete(2), True),
        (caterpillar(4), True),
        (complete(3), False),
        (complete(4), False),
    ]:
        table = table_of(topology, is_useful_only)
        errors = []
        for _ in range(3 if len(topology.sources) > 12 else 20):
            chances = torch.rand(len(topology.sources), generator=generator, dtype=torch.float64)
            truth = mean_by_enumeration(chances.tolist(), table)
            errors.append(float(path_macs({"s": chances[None]}, table)) / truth - 1)
        if is_exact:
            assert max(map(abs, errors)) < 1e-12
        else:
            assert 1e-6 < max(errors) < 0.02
            assert min(errors) > -1e-12


@pytest.mark.parametrize("router", ROUTERS)
def test_what_is_not_asked_about_its_weight(router: str) -> None:
    """With `node` routers an edge that leaves a dead node says nothing; an edge that the output
    rule opened is open.
    """
    topology = complete(2)  # 0-1 | 0-2 1-2 | 0-out 1-out 2-out
    table = table_of(topology, router == "stage")
    raw = torch.tensor([[0.1, 0.9, 0.9, 0.2, 0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.0, 0.9, 0.0, 0.2, 0.0, 0.0]])  # node 1 is dead, v0 -> out opened
    chances = open_probabilities({"s": weights}, {"s": raw}, {"s": torch.tensor(0.5)}, table)["s"]
    (gradient,) = torch.autograd.grad(chances.sum(), raw)
    assert chances[0, 3] == 1
    assert gradient[0, 3] > 0
    from_dead = [2, 4]
    if router == "node":
        assert (chances[0, from_dead] == 0).all()
        assert (gradient[0, from_dead] == 0).all()
    else:
        assert (chances[0, from_dead] > 0.2).all()
        assert (gradient[0, from_dead] > 0).all()


def test_nan_is_seen_unless_a_dead_node_said_it() -> None:
    _, net = convert("kept", "node")
    with torch.no_grad():
        net.lowered.dg_body.router_0.bias[1] = torch.nan
    _, gates = net.train()(images(2, 0), return_gates=True)
    assert dggraph.losses.kept(gates).isnan().all()
    assert dggraph.losses.budget(gates, 0.7).isnan()
    _, net = convert("kept", "node")
    with torch.no_grad():
        for name in ("0", "1"):
            net.lowered.dg_body.get_submodule(f"router_{name}").bias.fill_(-3)
        net.lowered.dg_body.router_2.bias.fill_(torch.nan)
    _, gates = net.train()(images(2, 0), return_gates=True)
    loss = dggraph.losses.budget(gates, 0.7)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, gates.raw["body"])[0].isfinite().all()


def test_bad_batches_and_targets() -> None:
    _, net = convert("kept", "stage")
    _, gates = net(images(2, 0), return_gates=True)
    empty = gates._replace(
        weights={"body": gates.weights["body"][:0]}, raw={"body": gates.raw["body"][:0]}
    )
    with pytest.raises(InputError, match="empty"):
        dggraph.losses.budget(empty, 0.7)
    for target in (0.1, -1.0, math.nan, math.inf, 80):
        with pytest.raises(InputError, match=r"out of reach.*0\.118"):
            dggraph.losses.budget(gates, target)


def test_an_output_without_gates_is_named() -> None:
    _, net = convert("kept", "stage")
    with pytest.raises(InputError, match=r"gates are needed, not Tensor.*return_gates=True"):
        dggraph.losses.budget(net(images(2, 0)), 0.7)


def test_under_autocast_and_compiled() -> None:
    model, net = convert("lifted", "node")
    model, net = model.float(), randomise_routers(net.float(), 2).train()
    x = images(4, 0).float()

    def gradients(run: nn.Module) -> tuple[Tensor, list[Tensor]]:
        net.zero_grad()
        _, gates = run(x, return_gates=True)
        loss = dggraph.losses.budget(gates, 0.6)
        loss.backward()
        return loss.detach(), [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.parameters()
        ]

    loss, expected = gradients(net)
    assert loss > 0
    assert any(gradient.any() for gradient in expected)
    compiled = gradients(torch.compile(net, backend="aot_eager", fullgraph=True))
    assert compiled[0] == loss
    torch.testing.assert_close(compiled[1], expected)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        _, gates = net(x, return_gates=True)
        values = dggraph.losses.kept(gates).detach()
    open_edges = {stage: weights != 0 for stage, weights in gates.weights.items()}
    assert torch.equal(values, path_macs(open_edges, gates.table) / gates.table.static)
    assert gradients(net)[0].dtype == torch.float64


def _run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(
        randomise_routers(convert("kept", "node")[1], 2).train()
    )
    output, gates = net(images(8, 0)[rank::2], return_gates=True)
    (output.square().mean() + dggraph.losses.budget(gates, 0.6)).backward()
    if rank == 0:
        torch.save(
            {name: p.grad for name, p in net.module.named_parameters()}, f"{folder}/gradients.pt"
        )
    torch.distributed.destroy_process_group()


@pytest.mark.cpu
def test_ddp_averages_what_each_process_sees(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_run_rank, (str(tmp_path),), nprocs=2)
    net = randomise_routers(convert("kept", "node")[1], 2).train()
    for rank in (0, 1):
        output, gates = net(images(8, 0)[rank::2], return_gates=True)
        ((output.square().mean() + dggraph.losses.budget(gates, 0.6)) / 2).backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    torch.testing.assert_close(
        found, {name: p.grad for name, p in net.named_parameters()}, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("router", ROUTERS)
def test_training_reaches_the_budget_on_other_images(router: str) -> None:
    model, net = convert("kept", router, depth=3, seed=0)
    train_routers(net.float(), model.float(), 0.6, 200, seed=0)
    recording = dggraph.record(net, images(512, 7).float(), batch_size=512)
    kept = float(recording.macs.double().mean()) / net.macs_table.static
    assert abs(kept - 0.6) <= 0.02
    assert len({path.macs for path in recording.paths}) > 2, "images differ in what they cost"


def close_edges_into(net: DynamicNetwork, vertex: int) -> list[tuple[nn.Parameter, int]]:
    """Shut every edge into `vertex`, for every image; returns the router biases that say so, and
    where in them.
    """
    (stage,) = net.graph.stages
    owner = net.lowered.get_submodule(f"dg_{stage}")
    name = net.graph.nodes(stage)[vertex].name
    biases = []
    with torch.no_grad():
        for index, source in enumerate(net.graph.nodes(stage)[:vertex]):
            place = [edge.target for edge in net.graph.outgoing(source.name)].index(name)
            biases.append((owner.get_submodule(f"router_{index}").get_parameter("bias"), place))
            biases[-1][0][place] = -2.5
    return biases


def test_the_budget_wins_back_a_node_that_is_dead_for_every_image() -> None:
    """The task alone gives such a node no gradient at all and never uses it again, although it
    would lower the task's loss.
    """
    model, start = convert("lifted", "node", depth=3, seed=0)
    into = close_edges_into(start, 2)
    output, gates = start.train()(images(32, 0), return_gates=True)
    task = (output - model(images(32, 0))).square().mean()
    biases = [bias for bias, _ in into]
    from_task = torch.autograd.grad(task, biases, retain_graph=True)
    from_budget = torch.autograd.grad(dggraph.losses.budget(gates, 1.0), biases)
    for (_, place), task_gradient, budget_gradient in zip(
        into, from_task, from_budget, strict=True
    ):
        assert task_gradient[place] == 0
        assert task_gradient.any()
        assert budget_gradient[place] < 0, "a descent step opens the edge"

    errors, shares = {}, {}
    for target in (None, 1.0):
        net = copy.deepcopy(start).float()
        errors[target] = train_routers(net, copy.deepcopy(model).float(), target, 150, seed=0)
        paths = dggraph.record(net, images(256, 5).float(), batch_size=256).paths
        node = net.graph.nodes("body")[2].name
        shares[target] = sum(node in path.live_nodes(net.graph) for path in paths) / 256
    assert shares[None] == 0
    assert shares[1.0] > 0.5
    assert errors[1.0] < errors[None]
