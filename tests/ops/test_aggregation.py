"""The pull-form backward of a stage against the plain expression's, in every way autograd may be
asked.
"""

import weakref
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dggraph.errors import GradientError
from dggraph.ops.aggregation import adapt, aggregate, plain_aggregation, share
from dggraph.ops.collecting import collect, weigh
from dggraph.ops.gating import column
from dggraph.ops.liveness import Topology
from dggraph.ops.stage_cache import Cache, Reading, stage_cache
from dggraph.ops.weighted_sum import inner_products, masked_sum, products_with, weighted_sum

Edges = list[tuple[int, int]]


FORMS = ("direct", "rows", "stage")
"""Where the weights' gradients are computed: in `aggregate`, `weigh` or `collect`."""


def run_stage(
    x: Tensor,
    blocks: nn.ModuleList,
    weights: Tensor,
    edges: Edges,
    watch: list[Tensor] | None = None,
    form: str = "rows",
) -> Tensor:
    """A stage as lowering writes it: node j reads the weighted sum of its sources, `out` the last
    one.
    """
    cache, shared, value = stage_cache(), [], x
    topology = Topology(*map(tuple, zip(*edges, strict=True)))
    outgoing = topology.outgoing()
    everywhere = torch.tensor(-torch.inf)
    rows: list[Tensor] = []
    if form == "stage":
        weights = collect(weights, cache, topology)
    for target in range(1, len(blocks) + 2):
        shared.append(share(value, cache, target - 1))
        places = outgoing[target - 1]
        row = weights[:, places]
        if form == "rows":
            ends = tuple(topology.targets[place] for place in places)
            row = weigh(row, None, everywhere, True, cache, target - 1, ends)
        rows.append(row)
        into = [(place, source) for place, (source, j) in enumerate(edges) if j == target]
        sources = tuple(source for _, source in into)
        columns = column(rows, [(source, outgoing[source].index(place)) for place, source in into])
        through = {
            "direct": [],
            "rows": [rows[source] for source in sources],
            "stage": [weights],
        }[form]
        z = aggregate(
            [shared[source] for source in sources], columns, cache, sources, target, through
        )
        if watch is not None:
            watch.append(z)
        value = blocks[target - 1](z) if target <= len(blocks) else z
    return value


def make(depth: int, seed: int, keep: float = 1.0) -> tuple[Tensor, nn.ModuleList, Tensor, Edges]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    torch.manual_seed(seed)
    blocks = nn.ModuleList(
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh()) for _ in range(depth)
    ).double()
    edges = [
        (i, j)
        for j in range(1, depth + 2)
        for i in range(j)
        if i == j - 1 or torch.rand((), generator=generator) < keep
    ]
    weights = torch.randn(3, len(edges), dtype=torch.float64, generator=generator)
    weights[torch.rand(weights.shape, generator=generator) < 0.3] = 0
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), blocks, weights.requires_grad_(), edges


def gradients(function: Callable[[], Tensor], leaves: list[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(function(), leaves, allow_unused=True)
    return [
        torch.zeros_like(leaf) if grad is None else grad
        for grad, leaf in zip(grads, leaves, strict=True)
    ]


def same(left: list[Tensor], right: list[Tensor]) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    depth=st.integers(1, 5),
    seed=st.integers(0, 1000),
    keep=st.sampled_from([0.0, 0.4, 1.0]),
    form=st.sampled_from(FORMS),
)
def test_gradients_equal_the_plain_expression(
    depth: int, seed: int, keep: float, form: str
) -> None:
    x, blocks, weights, edges = make(depth, seed, keep)
    leaves = [x, weights, *blocks.parameters()]
    factor = torch.randn(3, 2, 4, 4, dtype=torch.float64)

    def total() -> Tensor:
        return (run_stage(x, blocks, weights, edges, form=form) * factor).sum()

    pulled = gradients(total, leaves)
    with plain_aggregation():
        plain = gradients(total, leaves)
    same(pulled, plain)


@pytest.mark.parametrize("form", FORMS)
def test_a_frozen_entry_or_frozen_blocks(form: str) -> None:
    """Weights get their gradients whatever else is frozen; features get theirs without weights."""
    x, blocks, weights, edges = make(3, 8)
    for leaves in ([weights], [x], [weights, x], [x, *blocks[0].parameters()]):
        for leaf in [x, weights, *blocks.parameters()]:
            leaf.requires_grad_(any(leaf is one for one in leaves))

        def total() -> Tensor:
            return run_stage(x, blocks, weights, edges, form=form).square().sum()

        pulled = gradients(total, leaves)
        with plain_aggregation():
            same(pulled, gradients(total, leaves))


@pytest.mark.parametrize("form", FORMS)
def test_weights_read_elsewhere_too(form: str) -> None:
    """As the loss on the budget does: both gradients add up."""
    x, blocks, weights, _ = make(2, 9)
    leaves = [x, weights]

    def total() -> Tensor:
        cache, topology = stage_cache(), Topology((0, 0, 1), (1, 2, 2))
        first, row = share(x, cache, 0), weights[:, :2]
        decided = weights[:, :3]
        through: list[Tensor] = []
        if form == "rows":
            row = weigh(row, None, torch.tensor(-torch.inf), True, cache, 0, (1, 2))
            second = weigh(weights[:, 2:3], None, torch.tensor(-torch.inf), True, cache, 1, (2,))
            decided, through = torch.cat([row, second], 1), [row, second]
        elif form == "stage":
            decided = collect(decided, cache, topology)
            through = [decided]
        inner = blocks[0](aggregate([first], decided[:, :1], cache, (0,), 1, through[:1]))
        shared = [first, share(inner, cache, 1)]
        z = aggregate(shared, decided[:, 1:], cache, (0, 1), 2, through)
        return z.square().sum() + decided.pow(3).sum()

    pulled = gradients(total, leaves)
    with plain_aggregation():
        same(pulled, gradients(total, leaves))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_every_op(form: str) -> None:
    x, blocks, weights, edges = make(2, 0)
    with torch.no_grad():
        weights[weights == 0] = 0.5
    assert torch.autograd.gradcheck(
        lambda x, w: run_stage(x, blocks, w, edges, form=form), (x, weights)
    )
    with plain_aggregation():
        assert torch.autograd.gradcheck(lambda x, w: run_stage(x, blocks, w, edges), (x, weights))
        assert torch.autograd.gradgradcheck(
            lambda x, w: run_stage(x, blocks, w, edges), (x, weights)
        )


def test_backward_twice_through_a_retained_graph() -> None:
    x, blocks, weights, edges = make(3, 1)
    total = run_stage(x, blocks, weights, edges).square().sum()
    leaves = [x, weights, *blocks.parameters()]
    once = torch.autograd.grad(total, leaves, retain_graph=True)
    same(list(once), list(torch.autograd.grad(total, leaves)))


def test_parts_of_a_stage_then_all_of_it() -> None:
    """A pass that ends inside the stage leaves gradients behind; the next pass must not see
    them.
    """
    x, blocks, weights, edges = make(3, 2)
    watched: list[Tensor] = []
    out = run_stage(x, blocks, weights, edges, watched)
    leaves = [x, weights, *blocks.parameters()]
    torch.autograd.grad(out.sum(), watched[2], retain_graph=True)
    early = gradients(lambda: watched[1].square().sum() + 0 * out.sum(), leaves)
    with plain_aggregation():
        watched.clear()
        out = run_stage(x, blocks, weights, edges, watched)
        expected = gradients(lambda: watched[1].square().sum() + 0 * out.sum(), leaves)
    same(early, expected)


def test_only_an_inner_node_gets_a_gradient_after_a_full_pass() -> None:
    x, blocks, weights, edges = make(3, 3)
    watched: list[Tensor] = []
    out = run_stage(x, blocks, weights, edges, watched)
    torch.autograd.grad(out.sum(), watched[2], retain_graph=True)
    (inner,) = torch.autograd.grad(watched[1].sum(), x)
    with plain_aggregation():
        watched.clear()
        run_stage(x, blocks, weights, edges, watched)
        (expected,) = torch.autograd.grad(watched[1].sum(), x)
    same([inner], [expected])


def test_a_stage_tensor_read_outside() -> None:
    x, blocks, weights, edges = make(2, 4)

    def total() -> Tensor:
        watched: list[Tensor] = []
        out = run_stage(x, blocks, weights, edges, watched)
        return out.sum() + watched[0].pow(3).sum() + x.pow(2).sum()

    leaves = [x, weights, *blocks.parameters()]
    pulled = gradients(total, leaves)
    with plain_aggregation():
        same(pulled, gradients(total, leaves))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    x, blocks, weights, edges = make(3, 5)
    leaves = [x, weights, *blocks.parameters()]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(
        run_stage, x, blocks, weights, edges, use_reentrant=reentrant
    ).square().sum().backward()
    kept = [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]
    with plain_aggregation():
        same(kept, gradients(lambda: run_stage(x, blocks, weights, edges).square().sum(), leaves))


def test_adapters_and_frozen_sources() -> None:
    """An adapter's gradient goes straight back; a source that needs no gradient is left out."""
    x, y = (
        torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 2, 2, 2, dtype=torch.float64),
    )
    weights = torch.tensor([[0.5, 2.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)

    def total() -> Tensor:
        cache = stage_cache()
        features = [adapt(share(x, cache, 0), 2, 1), share(y, cache, 1)]
        return aggregate(features, weights, cache, (None, 1), 2).square().sum()

    pulled = gradients(total, [x, weights])
    with plain_aggregation():
        same(pulled, gradients(total, [x, weights]))


def test_a_second_derivative_is_refused_with_the_way_out() -> None:
    x, blocks, weights, edges = make(1, 6)
    with pytest.raises(GradientError, match="plain_aggregation"):
        torch.autograd.grad(run_stage(x, blocks, weights, edges).sum(), x, create_graph=True)


def test_functorch_sees_the_plain_expression() -> None:
    x, blocks, weights, edges = make(2, 7)
    found = torch.func.grad(lambda w: run_stage(x, blocks, w, edges).sum())(weights)
    (expected,) = torch.autograd.grad(run_stage(x, blocks, weights, edges).sum(), weights)
    same([found], [expected])


def test_the_cache_forgets_a_gradient_after_its_last_source() -> None:
    cache, seen = Cache(), []
    cache.shared.update((0, 1))

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            one = torch.ones(1)
            dz = weakref.ref(one)
            for source in (0, 1):
                cache.put(source, 2, Reading(one, grad, grad))
            del one
            seen.append(cache.flow(1) is not None)
            seen.append(dz() is not None)
            seen.append(cache.flow(0) is not None)
            seen.append(dz() is None)
            seen.append(cache.flow(0) is None)
            return grad

    Probe.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert seen == [True] * 5


def test_closed_branches_of_inf_and_nan() -> None:
    """Values and gradients stay finite; the closed edge's weight hears of the finite part alone."""
    bad = torch.tensor([[1.0, torch.inf, torch.nan, 2.0]] * 2, requires_grad=True)
    good = torch.ones(2, 4, requires_grad=True)
    weights = torch.tensor([[0.0, 1.0], [0.0, 3.0]], requires_grad=True)
    cache = stage_cache()
    total = aggregate([share(bad, cache, 0), share(good, cache, 1)], weights, cache, (0, 1), 2)
    assert torch.equal(total, torch.tensor([[1.0] * 4, [3.0] * 4]))
    total.sum().backward()
    assert bad.grad is not None
    assert torch.equal(bad.grad, torch.zeros(2, 4))
    assert weights.grad is not None
    assert weights.grad.tolist() == [[3.0, 4.0], [3.0, 4.0]]


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_a_closed_edge_among_instances_that_have_it_open(bad: float) -> None:
    x, y = torch.ones(2, 3), torch.ones(2, 3)
    x[0] = bad
    weights = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert torch.equal(weighted_sum([x, y], weights), torch.tensor([[1.0] * 3, [3.0] * 3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [3, 1 << 17])
def test_fast_and_masked_arithmetic_agree(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    features = [torch.randn(3, size).to(dtype) for _ in range(4)]
    weights = torch.rand(3, 4) + 0.2
    weights[0, 1] = weights[2] = weights[:, 3] = 0
    tolerance = {
        torch.float64: 1e-14,
        torch.float32: 1e-6,
        torch.float16: 4e-3,
        torch.bfloat16: 3e-2,
    }[dtype]
    found = weighted_sum(features, weights)
    assert found.dtype == dtype
    torch.testing.assert_close(found, masked_sum(features, weights), rtol=tolerance, atol=tolerance)
    grad = torch.randn(3, size).to(dtype)
    products = inner_products(features, grad)
    expected = torch.stack([(x.double() * grad.double()).sum(1) for x in features], 1)
    assert (products.double() - expected).abs().max() <= 1e-5 * (size**0.5)


def test_layouts_are_kept() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert weighted_sum([x, x], torch.ones(2, 2)).stride() == x.stride()
    odd = torch.randn(2, 4, 5, 3).permute(0, 3, 2, 1)
    assert weighted_sum([odd], torch.ones(2, 1)).stride() == odd.stride()


def test_an_empty_batch() -> None:
    assert weighted_sum([torch.ones(0, 3), torch.ones(0, 3)], torch.ones(0, 2)).shape == (0, 3)
    assert inner_products([torch.ones(0, 3)], torch.ones(0, 3)).shape == (0, 1)


@pytest.mark.parametrize("swapped", [False, True])
def test_products_of_other_layouts_and_under_autocast(swapped: bool) -> None:
    x, grad = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    expected = (x.double() * grad.double()).flatten(1).sum(1, keepdim=True)
    last = [one.contiguous(memory_format=torch.channels_last) for one in (x, grad)]
    pairs = [(x, grad), (last[0], grad), (x, last[1]), (last[0], last[1])]
    with torch.autocast("cpu", torch.bfloat16):
        for feature, flow in pairs:
            found = products_with([flow], feature) if swapped else inner_products([feature], flow)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
