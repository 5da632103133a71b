"""The C++ kernels against a plain loop and against plain torch; built once a session, into a folder
of the tests' own.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dggraph.cli.main import main
from dggraph.errors import KernelError
from dggraph.ops import kernels, rows, weighted_sum

pytestmark = pytest.mark.cpu

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = [(3,), (5, 4, 3), (3, 50, 61), (130, 8, 8)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "columns first": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "one element": lambda x: x[:1, ..., :1].expand_as(x),
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that holds the kernels."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler here: install g++ or clang++")
    if shutil.which("ninja") is None and not Path(sys.executable).with_name("ninja").exists():
        pytest.skip("no ninja here: pip install 'dggraph[kernels]'")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        kernels.build()
    kernels._load.cache_clear()
    return folder


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, looked at anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DGGRAPH_KERNELS", raising=False)
    kernels._load.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    kernels._load.cache_clear()


@pytest.fixture
def loaded(fresh: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, in use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert kernels.load()


def run_python(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def loop(
    features: list[Tensor], places_RE: npt.NDArray[Any] | None, weights_RE: npt.NDArray[Any]
) -> Tensor:
    """The definition, in float64."""
    total = torch.zeros((len(weights_RE), *features[0].shape[1:]), dtype=torch.float64)
    for r, row_E in enumerate(weights_RE):
        for e, weight in enumerate(row_E):
            if weight != 0:
                total[r] += (
                    float(weight)
                    * features[e][r if places_RE is None else places_RE[r, e]].double()
                )
    return total


def plain(monkeypatch: pytest.MonkeyPatch, function: Callable[[], Tensor]) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "is_usable", lambda tensors: False)
        return function()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    num_edges=st.integers(1, 6),
    num_rows=st.integers(0, 5),
    dtype=st.sampled_from(list(TOLERANCE)),
    shape=st.sampled_from(SHAPES),
    layout=st.sampled_from(list(LAYOUTS)),
    has_places=st.booleans(),
)
def test_sums_equal_the_loop_and_plain_torch(
    loaded: None,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    num_edges: int,
    num_rows: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    has_places: bool,
) -> None:
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    lengths = [int(random.integers(1, 6)) if has_places else num_rows for _ in range(num_edges)]
    features = [
        LAYOUTS[layout](torch.randn((length, *shape), generator=generator).to(dtype))
        for length in lengths
    ]
    places = (
        np.stack([random.integers(0, length, num_rows) for length in lengths], axis=1)
        if has_places
        else None
    )
    weights = random.normal(size=(num_rows, num_edges)).astype(
        random.choice(["float32", "float64"])
    )
    weights[random.random(weights.shape) < 0.2] = 1
    weights[random.random(weights.shape) < 0.4] = 0
    if places is not None:
        places[weights == 0] = -1
    sources = [
        None if num_edges > 1 and not (weights[:, e] != 0).any() else feature
        for e, feature in enumerate(features)
    ]
    if all(source is None for source in sources):
        sources[0] = features[0]
    found = rows.sum_rows(sources, places, weights, may_alias=False)
    assert found.dtype == dtype
    expected = loop(features, places, weights)
    scale = loop([feature.abs() for feature in features], places, np.abs(weights)).clamp(min=1e-3)
    assert ((found.double() - expected).abs() <= TOLERANCE[dtype] * scale).all()
    for large_row in (1, 1 << 30):  # both ways to do it in torch
        monkeypatch.setattr(rows, "LARGE_ROW", large_row)
        in_torch = plain(
            monkeypatch, lambda: rows.sum_rows(sources, places, weights, may_alias=False)
        )
        assert found.dtype == in_torch.dtype
        assert found.stride() == in_torch.stride()
        assert ((found.double() - in_torch.double()).abs() <= 4 * TOLERANCE[dtype] * scale).all()


@pytest.mark.parametrize("places", [None, "identity"])
@pytest.mark.parametrize("block", [1, 7, 14, 1000])
def test_blocks_of_rows_in_plain_torch(
    monkeypatch: pytest.MonkeyPatch, places: str | None, block: int
) -> None:
    """All edges open, all rows in place: exact for small integers, whatever the block."""
    monkeypatch.setattr(rows, "LARGE_ROW", 1)
    monkeypatch.setattr(rows, "BLOCK", block)
    monkeypatch.setattr(rows, "_sum_each_row", None)
    features = [torch.randint(-9, 9, (5, 7)).float() for _ in range(3)]
    weights = np.arange(1.0, 16.0).reshape(5, 3)
    where = None if places is None else np.stack([np.arange(5)] * 3, axis=1)
    found = plain(monkeypatch, lambda: rows.sum_rows(features, where, weights, may_alias=False))
    assert torch.equal(found.double(), loop(features, where, weights))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    num_edges=st.integers(1, 6),
    num_rows=st.integers(0, 4),
    dtype=st.sampled_from(list(TOLERANCE)),
    shape=st.sampled_from(SHAPES),
    layout=st.sampled_from(list(LAYOUTS)),
    grad_layout=st.sampled_from(list(LAYOUTS)),
)
def test_inner_products_equal_float64(
    loaded: None,
    seed: int,
    num_edges: int,
    num_rows: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    grad_layout: str,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = [
        LAYOUTS[layout](torch.randn((num_rows, *shape), generator=generator).to(dtype))
        for _ in range(num_edges)
    ]
    grad = LAYOUTS[grad_layout](torch.randn((num_rows, *shape), generator=generator).to(dtype))
    found = weighted_sum.inner_products(features, grad)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    terms = [(feature.double() * grad.double()).flatten(1) for feature in features]
    expected, scale = (
        torch.stack([one.sum(1) for one in terms], 1),
        torch.stack([one.abs().sum(1) for one in terms], 1),
    )
    assert (
        (found.double() - expected).abs()
        <= (1e-14 if dtype == torch.float64 else 1e-6) * scale + 1e-30
    ).all()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 10_000),
    num_edges=st.integers(1, 9),
    num_rows=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shape=st.sampled_from([*SHAPES, (20_001,)]),
    layout=st.sampled_from(list(LAYOUTS)),
    grad_layout=st.sampled_from(list(LAYOUTS)),
)
def test_one_pass_equals_a_sum_and_the_products(
    loaded: None,
    seed: int,
    num_edges: int,
    num_rows: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    layout: str,
    grad_layout: str,
) -> None:
    """The sum to the bit, also beside closed NaN; the products with non-finite features as 0."""
    generator = torch.Generator().manual_seed(seed)

    def random(form: str) -> Tensor:
        return LAYOUTS[form](torch.randn((num_rows, *shape), generator=generator).to(dtype))

    feature, grads = random(layout), [random(grad_layout) for _ in range(num_edges)]
    feature = torch.where(feature > 2, torch.nan, feature)
    weights = torch.randn(num_rows, num_edges, generator=generator).to(dtype)
    weights[torch.rand(weights.shape, generator=generator) < 0.4] = 0
    summed, products = weighted_sum.sum_and_products(grads, weights, feature)
    assert torch.equal(summed, weighted_sum.weighted_sum(grads, weights))
    # in float64: in float32 torch's own product is off by 2e-4 where all elements are equal
    finite = torch.nan_to_num(feature).double().flatten(1)
    terms = [one.double().flatten(1) * finite for one in grads]
    expected, scale = (
        torch.stack([one.sum(1) for one in terms], 1),
        torch.stack([one.abs().sum(1) for one in terms], 1),
    )
    assert products.shape == (num_rows, num_edges)
    assert products.dtype == dtype
    bound = (1e-13 if dtype == torch.float64 else 1e-5) * scale + 1e-30
    assert ((products.double() - expected).abs() <= bound).all()


@pytest.mark.usefixtures("loaded")
class TestLoaded:
    @pytest.mark.parametrize("axis", [1, 3])
    @pytest.mark.parametrize("num_channels", [1, 7, 24, 130])
    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (24, 24), (40, 61)])
    @pytest.mark.parametrize("layout", ["contiguous", "channels last"])
    def test_pooled_logits(
        self, axis: int, num_channels: int, size: tuple[int, int], layout: str
    ) -> None:
        shape = [1, *size]
        shape.insert(axis, num_channels)
        x, weight, bias = torch.randn(shape), torch.randn(9, num_channels), torch.randn(9)
        if axis == 1:
            x = LAYOUTS[layout](x)
        means = x.double().mean([a for a in (1, 2, 3) if a != axis])
        expected = (means @ weight.double().t() + bias)[0]
        found = torch.tensor(kernels.pooled_logits(x, weight, bias, axis=axis))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)

    @pytest.mark.parametrize(
        "x", [torch.randn(2, 4, 3, 3), torch.randn(1, 5, 3, 3), torch.randn(1, 4, 3, 3).double()]
    )
    def test_pooled_logits_of_other_features_are_refused(self, x: Tensor) -> None:
        with pytest.raises(RuntimeError, match="pooled_logits takes"):
            kernels.pooled_logits(x, torch.randn(9, 4), torch.randn(9), axis=1)

    @pytest.mark.parametrize("size", [5, 70, 9001])
    @pytest.mark.parametrize("bad", [torch.inf, torch.nan])
    def test_one_pass_leaves_closed_gradients_out(self, size: int, bad: float) -> None:
        good, broken = torch.randn(2, size), torch.full((2, size), bad)
        weights = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        summed, products = weighted_sum.sum_and_products(
            [good, broken], weights, torch.ones_like(good)
        )
        assert torch.equal(summed, torch.stack([2 * good[0], torch.zeros(size)]))
        assert products[:, 0].isfinite().all()
        assert not products[:, 1].isfinite().any()

    @pytest.mark.parametrize("dtype", list(TOLERANCE))
    @pytest.mark.parametrize("size", [1, 63, 64, 8192, 20_001])
    def test_closed_edges_are_never_read_and_nan_weights_show(
        self, dtype: torch.dtype, size: int
    ) -> None:
        good, bad = torch.randn(3, size).to(dtype), torch.full((3, size), torch.nan).to(dtype)
        bad[1] = torch.inf
        found = rows.sum_rows(
            [bad, good], None, np.array([[0.0, 1.0], [0.0, 0.0], [0.0, np.nan]]), may_alias=False
        )
        assert torch.equal(found[0], good[0])
        assert torch.equal(found[1], torch.zeros(size, dtype=dtype))
        assert found[2].isnan().all()

    def test_an_edge_of_weight_1_is_exact_and_signed_zeros_stay(self) -> None:
        x = torch.tensor([[-0.0, 1e-45, 3e38, torch.inf, torch.nan]])
        found = rows.sum_rows([x], None, np.ones((1, 1)), may_alias=False)
        assert torch.equal(found.view(torch.int32), x.view(torch.int32))
        assert found.data_ptr() != x.data_ptr()

    @pytest.mark.parametrize("dtype", list(TOLERANCE))
    @pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
    def test_elements_that_are_not_finite_are_taken_as_0(
        self, dtype: torch.dtype, bad: float
    ) -> None:
        x, grad = torch.ones(2, 9001, dtype=dtype), torch.ones(2, 9001, dtype=dtype)
        x[0, [0, 8500, 9000]] = bad
        assert weighted_sum.inner_products([x], grad).tolist() == [[8998.0], [9001.0]]
        grad[1, 0] = bad
        assert not weighted_sum.inner_products([x], grad)[1].isfinite().any()

    def test_the_kernels_are_what_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        names = ("sum_rows", "weighted_sum", "inner_products", "sum_and_products")
        for name in names:
            monkeypatch.setattr(kernels, name, lambda *_, name=name: calls.append(name))
        x, weights = torch.ones(2, 3), torch.ones(2, 1)
        rows.sum_rows([x], None, weights.numpy(), may_alias=False)
        weighted_sum.weighted_sum([x], weights)
        weighted_sum.inner_products([x], x)
        weighted_sum.sum_and_products([x], weights, x)
        assert calls == list(names)

    def test_other_tensors_stay_in_plain_torch(self) -> None:
        x = torch.ones(1, 2)
        for others in ([x, x.double()], [x.int()], [x, x.to("meta")], [x.to("meta")]):
            assert not kernels.is_usable(others)
        assert kernels.is_usable([x, x])
        mixed = rows.sum_rows([x, x.double()], None, np.full((1, 2), 2.0), may_alias=False)
        assert mixed.dtype == torch.float64
        assert mixed.tolist() == [[4.0, 4.0]]

    def test_compilers_do_not_meet_the_kernels(self) -> None:
        def usable(x: Tensor) -> Tensor:
            return x + 1 if kernels.is_usable([x]) else x

        assert torch.compile(usable, backend="eager")(torch.zeros(1)).item() == 0

    @pytest.mark.parametrize(
        ("features", "places", "weights", "match"),
        [
            (
                [torch.ones(2, 3)],
                torch.tensor([[2]]),
                torch.ones(1, 1),
                "reads row 2 of edge 0, which has 2",
            ),
            ([torch.ones(2, 3)], torch.tensor([[-1]]), torch.ones(1, 1), "reads row -1"),
            ([torch.ones(2, 3)], None, torch.ones(1, 3), "reads row 2"),
            ([torch.ones(2, 3)], torch.tensor([[0, 0]]), torch.ones(1, 1), "places must be shaped"),
            ([torch.ones(2, 3)], None, torch.ones(2, 2), "weights must be"),
            ([torch.ones(2, 3), torch.ones(2, 4)], None, torch.ones(2, 2), "rows of one shape"),
            ([torch.ones(2, 3), torch.ones(2, 3).double()], None, torch.ones(2, 2), "one dtype"),
            ([], None, torch.ones(0, 2), "one tensor"),
        ],
    )
    def test_wrong_arguments_are_refused(
        self, features: list[Tensor], places: Any, weights: Tensor, match: str
    ) -> None:
        with pytest.raises((RuntimeError, IndexError), match=match):
            torch.ops.dggraph.sum_rows(features, places, weights)

    @pytest.mark.filterwarnings(
        "ignore:The .grad attribute:UserWarning"
    )  # from opcheck itself, torch 2.14
    @pytest.mark.parametrize("layout", ["contiguous", "channels last"])
    @pytest.mark.parametrize("has_places", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_opcheck(self, layout: str, has_places: bool, dtype: torch.dtype) -> None:
        features = [
            LAYOUTS[layout](torch.randn(3, 2, 4, 5, dtype=dtype)).requires_grad_() for _ in range(2)
        ]
        places = torch.tensor([[0, 2, 1, 1], [1, -1, 2, 0]]) if has_places else None
        weights = torch.randn(2, 4 if has_places else 3, dtype=dtype)
        weights[1, 1] = 0
        plain_features = [feature.detach() for feature in features]
        for op, arguments in (
            (torch.ops.dggraph.sum_rows, (features, places, weights.requires_grad_())),
            (torch.ops.dggraph.inner_products, (plain_features, plain_features[0])),
            (
                torch.ops.dggraph.sum_and_products,
                (plain_features, torch.randn(3, 2), plain_features[0]),
            ),
        ):
            found = torch.library.opcheck(op.default, arguments)
            assert set(found.values()) == {"SUCCESS"}, found

    def test_gradients(self) -> None:
        features = [torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        weights = torch.randn(3, 4, dtype=torch.float64)
        weights[0, 0] = weights[2, 1] = 0
        weights.requires_grad_()
        places = torch.tensor([[0, 2, 1, 1], [2, 2, 2, 0], [0, 1, 2, 0]])

        def gathered(weights: Tensor, *features: Tensor) -> Tensor:
            return torch.ops.dggraph.sum_rows(features, places, weights)

        def identity(weights: Tensor, *features: Tensor) -> Tensor:
            return torch.ops.dggraph.sum_rows(features, None, weights[:, :3])

        for function in (gathered, identity):
            assert torch.autograd.gradcheck(function, (weights, *features))
            assert torch.autograd.gradgradcheck(function, (weights.detach() + 3, *features))

    def test_a_closed_edge_to_nowhere_gets_no_gradient(self) -> None:
        x, empty = torch.ones(2, 3, requires_grad=True), torch.ones(0, 3, requires_grad=True)
        weights = torch.tensor([[2.0], [0.0]], requires_grad=True)
        torch.ops.dggraph.sum_rows([x, empty], torch.tensor([[1], [-1]]), weights).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[0.0] * 3, [2.0] * 3]
        assert empty.grad is not None
        assert empty.grad.shape == (0, 3)
        assert weights.grad is not None
        assert weights.grad.tolist() == [[3.0], [0.0]]

    def test_threads_do_not_change_the_result(self) -> None:
        features, weights = (
            [torch.randn(3, 50_001) for _ in range(3)],
            np.random.default_rng(0).normal(size=(3, 3)),
        )
        threads, results = torch.get_num_threads(), []
        try:
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                total = rows.sum_rows(features, None, weights, may_alias=False)
                results.append((total, weighted_sum.inner_products(features, total)))
        finally:
            torch.set_num_threads(threads)
        for total, products in results[1:]:
            assert torch.equal(total, results[0][0])
            assert torch.equal(products, results[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_older_cpus(fresh: Path, cache: Path, capability: str) -> None:
    """What torch would run on one is what gets built; the other library is not found."""
    program = (
        "import torch, numpy as np; from dggraph.ops import kernels, rows\nassert not"
        " kernels.load(), kernels.status(); kernels.build(); assert kernels.load()\nfor dtype in"
        " kernels.DTYPES:\n    x = torch.arange(3000).remainder(7).reshape(2, 1500).to(dtype)\n   "
        " assert torch.equal(rows.sum_rows([x, x], None, np.full((2, 2), 2.0), may_alias=False), 4"
        " * x)\n    assert torch.equal(kernels.inner_products([x], x).double(), (x.double() **"
        " 2).sum(1, keepdim=True))\n"
    )
    run_python(program, ATEN_CPU_CAPABILITY=capability, XDG_CACHE_HOME=str(fresh))


USE = (
    "import torch, numpy as np; from dggraph.ops import kernels, weighted_sum\nfor _ in range(3):\n"
    "    assert weighted_sum.weighted_sum([torch.ones(2, 3)], torch.full((2, 1), 2.0)).tolist() =="
    " [[2.0] * 3] * 2\nprint(kernels.status())"
)


def test_a_missing_library_is_no_matter(fresh: Path) -> None:
    assert run_python(USE).strip() == "not built (dggraph doctor --build-kernels)"


def test_they_can_be_turned_off(fresh: Path, cache: Path) -> None:
    assert "built: " in run_python(USE, XDG_CACHE_HOME=str(cache))
    assert (
        run_python(USE, XDG_CACHE_HOME=str(cache), DGGRAPH_KERNELS="0").strip()
        == "turned off by DGGRAPH_KERNELS=0"
    )


@pytest.mark.parametrize("damage", ["cut short", "text", "gone", "foreign"])
def test_a_broken_library_is_named_once_and_replaced(
    fresh: Path, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kernels.location()
    shutil.copytree(cache, fresh, dirs_exist_ok=True)
    (library,) = folder.glob("*.so")
    if damage == "cut short":
        library.write_bytes(library.read_bytes()[:5000])
    elif damage == "gone":
        library.unlink()
    else:
        library.write_text("not a library")
    if damage == "foreign":  # whole, and made by someone else
        (folder / "sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
    said = run_python(USE)
    assert said.count("RuntimeWarning") == 1
    assert str(folder) in said
    assert "broken (dggraph doctor --build-kernels)" in said
    (intact,) = cache.rglob("*.so")
    monkeypatch.setattr(kernels, "_compile", lambda work: shutil.copy(intact, work))
    if (
        damage != "foreign"
    ):  # this process has the kernels already, and would not look for them there
        with pytest.warns(RuntimeWarning, match="cannot be loaded"):
            assert not kernels.load()
        kernels.build()
        assert kernels.load()
        assert library.read_bytes() == intact.read_bytes()


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A folder of compilers that leave a trace and fail."""
    folder = tmp_path / "poisoned"
    folder.mkdir()
    for name in ("c++", "g++", "gcc", "cc", "clang++", "ninja"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {folder}/trace\nexit 1\n")
        (folder / name).chmod(0o755)
    return folder


def test_nothing_is_built_by_import_or_use(fresh: Path, poisoned: Path) -> None:
    program = (
        "import torch, dggraph, torchvision\n"
        "net = dggraph.convert(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 32, 32))\n"
        "net.train()(torch.randn(2, 3, 32, 32)).sum().backward()\n"
        "dggraph.record(net.eval(), torch.randn(2, 3, 32, 32))\n"
    )
    run_python(
        program, PATH=str(poisoned), CXX=str(poisoned / "c++"), XDG_CACHE_HOME=str(fresh / "home")
    )
    assert not (poisoned / "trace").exists()
    assert not (fresh / "home" / "dggraph").exists()


def test_a_failed_build_says_why_and_leaves_nothing(
    fresh: Path, poisoned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.sysconfig, "get_path", lambda _: str(poisoned))
    with pytest.raises(KernelError, match=r"could not be built: .*[Nn]inja.*dggraph\[kernels\]"):
        kernels.build()
    assert list((fresh / "dggraph/kernels").iterdir()) == []
    assert kernels.status().startswith("not built")


def test_a_cache_that_cannot_be_written_is_named(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    with pytest.raises(KernelError, match=r"file/dggraph/kernels.*XDG_CACHE_HOME"):
        kernels.build()


def test_doctor_builds_them(
    fresh: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        main(["doctor"])
    assert "not built (dggraph doctor --build-kernels)" in capsys.readouterr().out
    kernels._load.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--build-kernels", "--json"])
    assert end.value.code == 0
    assert f'"built: {cache}' in capsys.readouterr().out


@pytest.mark.slow
def test_the_tests_of_aggregation_hold_with_the_kernels(fresh: Path, cache: Path) -> None:
    """In a process of its own, which says whether it used them."""
    program = (
        "import sys, pytest; from dggraph.ops import kernels\ncode = pytest.main(['-q', '-p',"
        " 'no:cacheprovider',"
        f" {str(Path(__file__).with_name('test_aggregation.py'))!r}])\nprint(code,"
        " kernels.status())"
    )
    said = run_python(program, XDG_CACHE_HOME=str(cache))
    assert f"ExitCode.OK built: {cache}" in said or f"0 built: {cache}" in said, said
