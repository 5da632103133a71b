"""The Triton kernels against a plain loop and plain torch.

They run on a GPU (`--device cuda`), or in Triton's interpreter, which needs TRITON_INTERPRET=1
before triton is imported. `test_triton_kernels` starts the latter in a process of its own.
"""

import os

import pytest
import torch
from torch import Tensor, nn

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip(
        "no GPU here; test_triton_kernels runs this file in Triton's interpreter",
        allow_module_level=True,
    )
pytest.importorskip("triton", reason="triton is not installed: pip install triton")

import dggraph
from dggraph.models.small_resnet import SmallResNet
from dggraph.ops import device_kernels, rows, triton_ops
from dggraph.ops.aggregation import aggregate, share
from dggraph.ops.collecting import weigh
from dggraph.ops.stage_cache import stage_cache
from dggraph.ops.triton_kernels import BLOCK
from dggraph.ops.weighted_sum import masked_sum

pytestmark = pytest.mark.gpu
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BAD = [torch.nan, torch.inf, -torch.inf]


@pytest.fixture
def device() -> torch.device:
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return torch.device("cpu" if is_interpreted else "cuda")


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 as the kernel does: to nearest, but the interpreter cuts bfloat16 off."""
    if dtype == torch.bfloat16 and values.device.type == "cpu":
        return (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    return values.to(dtype).float()


def loop(features: list[Tensor], places_RE: Tensor | None, weights_RE: Tensor) -> Tensor:
    """The definition, one row and one edge after the other; rounded after each term."""
    dtype = features[0].dtype
    total = torch.full((len(weights_RE), *features[0].shape[1:]), -0.0, device=features[0].device)
    for r in range(len(weights_RE)):
        for edge, feature in enumerate(features):
            weight = rounded(weights_RE[r, edge].float(), dtype)
            if weight != 0:
                place = r if places_RE is None else int(places_RE[r, edge])
                term = rounded(feature[place].float() * weight, dtype)
                total[r] = rounded(total[r] + term, dtype)
    return total.to(dtype)


def same(found: Tensor, expected: Tensor, *, bound: float = 0.0) -> bool:
    """Whether both are equal, NaN included; on a GPU, which fuses operations, up to `bound`."""
    if found.device.type == "cpu":
        bound = 0.0
    return torch.allclose(found.float(), expected.float(), rtol=bound, atol=bound, equal_nan=True)


def random_weights(num_rows: int, num_edges: int, device: torch.device) -> Tensor:
    """Weights of which two of five edges are closed, and a fifth is 1."""
    weights = torch.randn(num_rows, num_edges)
    choice = torch.rand(num_rows, num_edges)
    weights[choice < 0.4] = 0
    weights[choice > 0.8] = 1
    return weights.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_edges", [1, 3, 17, 64])
def test_sums_of_any_number_of_sources(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, num_edges: int
) -> None:
    """To the bit in the interpreter; on a GPU float32 multiply-adds are fused."""
    features = [
        torch.randn(3, 5, 3, 7).to(device, dtype).contiguous(memory_format=layout)
        for _ in range(num_edges)
    ]
    weights = random_weights(3, num_edges, device)
    weights[1] = 0
    found = triton_ops.sum_rows(features, None, weights)
    bound = 1e-5 if dtype == torch.float32 else 0.0
    assert same(found, loop(features, None, weights), bound=bound)
    assert found.is_contiguous(memory_format=layout)
    assert found.dtype == dtype
    if dtype != torch.bfloat16 or device.type == "cuda":
        assert same(found, masked_sum(features, weights), bound=bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3, 1, 1), (BLOCK,), (BLOCK + 1,), (7, 13, 29)])
@pytest.mark.parametrize("num_rows", [0, 4])
def test_row_maps_with_gaps(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], num_rows: int
) -> None:
    """Sources of different length; rows that several results read, and rows that none does."""
    lengths = [6, 1, 3, 2, 5]
    features = [torch.randn(length, *shape).to(device, dtype) for length in lengths]
    weights = random_weights(num_rows, len(lengths), device)
    places = torch.stack([torch.randint(length, (num_rows,)) for length in lengths], 1).to(device)
    places[weights == 0] = 1 << 40  # never read
    found = triton_ops.sum_rows(features, places, weights)
    assert found.shape == (num_rows, *shape)
    assert same(found, loop(features, places, weights), bound=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_closed_edges_are_never_read_and_nan_weights_show(
    device: torch.device, dtype: torch.dtype, bad: float
) -> None:
    good = torch.randn(3, BLOCK + 5).to(device, dtype)
    broken = torch.full_like(good, bad)
    weights = torch.tensor([[0.0, 1.0], [-0.0, 0.0], [0.0, torch.nan]], device=device)
    found = triton_ops.sum_rows([broken, good], None, weights)
    assert torch.equal(found[0], good[0])
    assert (found[1] == 0).all()
    assert found[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_edge_of_weight_1_is_exact_and_fresh(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.tensor([[-0.0, 0.0, 1e-7, 6e4, torch.inf, torch.nan]], device=device).to(dtype)
    found = triton_ops.sum_rows([x], None, torch.ones(1, 1, device=device))
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(found.view(bits)[:, :-1], x.view(bits)[:, :-1])
    assert found[0, -1].isnan()
    assert found.data_ptr() != x.data_ptr()


def test_weights_are_read_in_any_layout_and_type(device: torch.device) -> None:
    """A column of the adjacency, the transposed adjacency, float64 and bfloat16."""
    features = [torch.randn(4, 9, device=device) for _ in range(3)]
    adjacency = random_weights(4, 7, device)
    column = adjacency[:, 2:5]
    expected = loop(features, None, column)
    assert same(triton_ops.sum_rows(features, None, column), expected, bound=1e-5)
    transposed = column.T.contiguous().T
    assert transposed.stride() == (1, 4)
    assert same(triton_ops.sum_rows(features, None, transposed), expected, bound=1e-5)
    assert same(triton_ops.sum_rows(features, None, column.double()), expected, bound=1e-5)
    coarse = column.clamp(-1, 1).round()
    found = triton_ops.sum_rows(features, None, coarse.bfloat16())
    assert torch.equal(found, loop(features, None, coarse))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[3:7],
        lambda x: x[::2],
        lambda x: x[:4, :, :, ::2],
        lambda x: x[:4].transpose(2, 3),
        lambda x: x[:4].contiguous(memory_format=torch.channels_last),
        lambda x: x[:1].expand(4, -1, -1, -1),
    ],
)
def test_sources_in_another_layout_are_copied(device: torch.device, view: object) -> None:
    assert callable(view)
    features = [torch.randn(8, 3, 6, 6, device=device) for _ in range(2)]
    taken = [view(feature) for feature in features]
    plain = [torch.randn(one.shape, device=device) for one in taken]
    weights = random_weights(4, 4, device)
    for sources in ([*plain, *taken], [*taken, *plain]):
        expected = loop(sources, None, weights)
        assert same(triton_ops.sum_rows(sources, None, weights), expected, bound=1e-5)
        products = triton_ops.inner_products(sources, sources[1])
        exact = [(one.double() * sources[1].double()).flatten(1).sum(1) for one in sources]
        assert torch.allclose(products.double(), torch.stack(exact, 1), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_edges", [1, 3, 21])
def test_inner_products(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, num_edges: int
) -> None:
    """Within 1e-6 of the sum of absolute products; the same twice, to the bit."""
    features = [
        torch.randn(2, 5, 13, 17).to(device, dtype).contiguous(memory_format=layout)
        for _ in range(num_edges)
    ]
    grad = torch.randn(2, 5, 13, 17).to(device, dtype).contiguous(memory_format=layout)
    found = triton_ops.inner_products(features, grad)
    terms = [(feature.double() * grad.double()).flatten(1) for feature in features]
    expected = torch.stack([one.sum(1) for one in terms], 1)
    scale = torch.stack([one.abs().sum(1) for one in terms], 1)
    assert found.dtype == torch.float32
    assert found.shape == (2, num_edges)
    assert ((found.double() - expected).abs() <= 1e-6 * scale).all()
    assert torch.equal(found, triton_ops.inner_products(features, grad))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", BAD)
def test_elements_that_are_not_finite_are_taken_as_0(
    device: torch.device, dtype: torch.dtype, bad: float
) -> None:
    x, grad = (torch.ones(2, 2049, device=device, dtype=dtype) for _ in range(2))
    x[0, [0, 1500, 2048]] = bad
    assert triton_ops.inner_products([x], grad).tolist() == [[2046.0], [2049.0]]
    grad[1, 0] = bad
    assert not triton_ops.inner_products([x], grad)[1].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_edges", [3, 21])
def test_sums_and_products_in_one_pass(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, num_edges: int
) -> None:
    """Each is what its own kernel gives; closed edges have products, broken features count 0."""
    grads = [
        torch.randn(3, 5, 13, 17).to(device, dtype).contiguous(memory_format=layout)
        for _ in range(num_edges)
    ]
    feature = torch.randn(3, 5, 13, 17).to(device, dtype)
    feature[0, 0, 0, :2] = torch.tensor([torch.nan, torch.inf], device=device)
    weights = random_weights(3, num_edges, device)
    weights[1] = 0
    total, products = triton_ops.sum_and_products(grads, weights, feature)
    assert same(total, triton_ops.sum_rows(grads, None, weights))
    each = [triton_ops.inner_products([feature], grad) for grad in grads]
    assert torch.equal(products, torch.cat(each, 1))
    assert products.isfinite().all()
    assert (products[1] != 0).all()


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3)])
def test_tensors_without_elements(device: torch.device, shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, device=device)
    weights = torch.ones(shape[0], 2, device=device)
    assert triton_ops.sum_rows([x, x], None, weights).shape == shape
    nothing = torch.zeros(shape[0], 2).to(device)
    assert torch.equal(triton_ops.inner_products([x, x], x), nothing)
    total, products = triton_ops.sum_and_products([x, x], weights, x)
    assert total.shape == shape
    assert torch.equal(products, nothing)


def test_the_gradient_of_sums(device: torch.device) -> None:
    """As that of the plain expression; a closed edge's weight gets a gradient too."""
    features = [torch.randn(3, 4, 5, device=device, requires_grad=True) for _ in range(3)]
    weights = random_weights(3, 3, device).requires_grad_()
    grad = torch.randn(3, 4, 5, device=device)
    inputs = [*features, weights]
    triton_ops.sum_rows(features, None, weights).backward(grad)
    found = [one.grad for one in inputs]
    for one in inputs:
        one.grad = None
    expanded = [weights[:, e, None, None] for e in range(3)]
    sum(feature * weight for feature, weight in zip(features, expanded, strict=True)).backward(grad)
    for one, other in zip(found, inputs, strict=True):
        assert one is not None
        assert other.grad is not None
        assert torch.allclose(one, other.grad, atol=1e-6)


@pytest.fixture
def calls(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels in use, in the interpreter too; the names of those that were called."""
    names: list[str] = []

    def called(name: str) -> object:
        operation = getattr(triton_ops, name)
        return lambda *arguments: names.append(name) or operation(*arguments)

    for name in ("sum_rows", "inner_products", "sum_and_products"):
        monkeypatch.setattr(device_kernels, name, called(name))

    def is_usable(tensors: list[Tensor]) -> bool:
        return "off" not in names and len({one.dtype for one in tensors}) == 1

    monkeypatch.setattr(device_kernels, "is_usable", is_usable)
    return names


def run_stage(x: Tensor, weights: list[Tensor]) -> Tensor:
    """Three blocks and `out`, each of which reads all nodes before it; pull-form gradient.

    Node i has (B, 4 - i) weights, of the edges to all nodes after it.
    """
    cache, value = stage_cache(), x
    shared, rows = [], []
    everywhere = torch.tensor(-torch.inf, device=x.device)
    for index, row_BE in enumerate(weights):
        shared.append(share(value, cache, index))
        ends = tuple(range(index + 1, len(weights) + 1))
        rows.append(weigh(row_BE, None, everywhere, True, cache, index, ends))
        column = torch.stack([row[:, index - place] for place, row in enumerate(rows)], 1)
        sources = tuple(range(index + 1))
        value = torch.tanh(aggregate(shared, column, cache, sources, index + 1, rows))
    return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stage_trains_through_the_kernels(
    device: torch.device, calls: list[str], dtype: torch.dtype
) -> None:
    """Forward sums, pulled gradients and those of weights, as plain torch has them."""
    x = torch.randn(2, 6, 5, 3).to(device, dtype).requires_grad_()
    weights = [random_weights(2, n, device).to(dtype).requires_grad_() for n in (4, 3, 2, 1)]
    grad = torch.randn(2, 6, 5, 3).to(device, dtype)
    found = []
    for _ in range(2):
        output = run_stage(x, weights)
        output.backward(grad)
        found.append([output.detach(), *[one.grad for one in (x, *weights)]])
        for one in (x, *weights):
            one.grad = None
        if "off" not in calls:
            assert calls == ["sum_rows"] * 4 + ["sum_and_products"] * 4
            calls.append("off")
    bound = {torch.float32: 1e-5, torch.float16: 2e-2}[dtype]
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours.float(), plain.float(), rtol=bound, atol=bound)


def test_the_sparse_executor_sums_rows_through_the_kernels(
    device: torch.device, calls: list[str]
) -> None:
    """Places and weights that the host knows are copied to the device."""
    features = [torch.randn(n, 3, 4, 4, device=device) for n in (4, 2, 3)]
    weights = random_weights(5, 4, torch.device("cpu"))
    places = torch.stack([torch.randint(n, (5,)) for n in (4, 1, 2, 3)], 1)
    sources = [features[0], None, *features[1:]]
    weights[:, 1] = 0
    found = rows.sum_rows(sources, places.cpu().numpy(), weights.numpy(), may_alias=False)
    assert calls == ["sum_rows"]
    kept = [0, 2, 3]
    expected = loop(features, places[:, kept].to(device), weights[:, kept].to(device))
    assert same(found, expected, bound=1e-5)


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("is_training", [False, True])
def test_a_network_computes_the_same_through_the_kernels(
    device: torch.device, calls: list[str], router: str, is_training: bool
) -> None:
    """Images on paths of their own, in both executors; in training the gradients too."""
    net = dggraph.convert(SmallResNet(14, 4), torch.zeros(1, 3, 8, 8), router=router).to(device)
    for name, parameter in net.named_parameters():
        if name.startswith("dg_"):
            nn.init.normal_(parameter, std=2.0)
    # images of many colours, which routers see
    x = (torch.randn(5, 3, 8, 8) + 3 * torch.randn(5, 3, 1, 1)).to(device)
    net.train(is_training)
    found = []
    for _ in range(2):
        with torch.set_grad_enabled(is_training):
            output, gates = net(x, return_gates=True)
        found.append([one.detach() for one in (output, *gates.weights.values())])
        if is_training:
            net.zero_grad()
            output.square().sum().backward()
            found[-1] += [one.grad for one in net.parameters() if one.grad is not None]
        calls.append("off")
    paths = torch.cat([weights != 0 for weights in found[0][1 : len(gates.weights) + 1]], 1)
    assert len({tuple(path) for path in paths.tolist()}) > 1
    expected = {"sum_rows", "sum_and_products"} if is_training else {"sum_rows"}
    assert expected <= set(calls)
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
