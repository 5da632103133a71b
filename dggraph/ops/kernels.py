"""Optional C++ kernels for the CPU: weighted row sums and inner products in one pass over memory.

`dggraph doctor --build-kernels` compiles `kernels.cpp` into the user's cache, in a folder named
after the versions of torch and Python, the CPU's instruction set and the source. An installation
with DGGRAPH_BUILD_KERNELS=1 compiles it into the package, in a folder of the same name. The first
aggregation loads the library from there. Import never compiles anything, and neither does an
installation that was not asked to. Without the kernels, or with DGGRAPH_KERNELS=0, plain torch
computes the same values more slowly: it has no weighted sum of rows and reads memory once per
source.

Shape suffixes: R rows of the result, B instances, E edges; `_ER` is [edge][row].
"""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import threading
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from dggraph.errors import KernelError
from dggraph.system.paths import cache_folder
from dggraph.system.torch_private import below_autograd

SOURCE = Path(__file__).with_suffix(".cpp")
INSTALLED = Path(__file__).with_name("kernel_builds")
"""The folder of builds that came with the package; normally there are none."""
HOW = "dggraph doctor --build-kernels"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

INSTRUCTIONS = {
    "AVX512": (
        "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -DCPU_CAPABILITY=AVX512"
        " -DCPU_CAPABILITY_AVX512"
    ),
    "AVX2": "-mavx2 -mfma -mf16c -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2",
}
"""Compiler flags per `torch.backends.cpu.get_cpu_capability()`; elsewhere the compiler's default.

This is the instruction set that torch found on this CPU. It is not -march=native, because several
machines may share a home folder.
"""

_NAME = "dggraph_kernels"
_lock = threading.Lock()


def is_usable(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels are loaded and support `tensors` (one dtype, CPU, not traced)."""
    is_traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or torch.compiler.is_compiling() or not load():
        return False
    dtype = tensors[0].dtype
    return dtype in DTYPES and all(
        type(one) is Tensor and one.dtype == dtype and one.device.type == "cpu" for one in tensors
    )


def sum_rows(
    features: Sequence[Tensor], places_RE: npt.NDArray[Any] | None, weights_RE: npt.NDArray[Any]
) -> Tensor:
    """Compute `rows.sum_rows` for usable features, one per edge and none of them None.

    The result is always a fresh tensor.
    """
    places = None if places_RE is None else torch.from_numpy(places_RE.T)
    with below_autograd():
        return torch.ops.dggraph.sum_rows.default(features, places, torch.from_numpy(weights_RE.T))  # type: ignore[no-any-return]


def weighted_sum(features: Sequence[Tensor], weights_BE: Tensor) -> Tensor:
    """Compute `weighted_sum.weighted_sum` for usable tensors of at least 32 bits."""
    with below_autograd():
        return torch.ops.dggraph.sum_rows.default(features, None, weights_BE.T)  # type: ignore[no-any-return]


def inner_products(features: Sequence[Tensor], grad: Tensor) -> Tensor:
    """Compute `weighted_sum.inner_products` for usable tensors."""
    return torch.ops.dggraph.inner_products.default(features, grad)  # type: ignore[no-any-return]


def sum_and_products(
    grads: Sequence[Tensor], weights_BE: Tensor, feature: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `weighted_sum.sum_and_products` for usable tensors of at least 32 bits."""
    with below_autograd():
        return torch.ops.dggraph.sum_and_products.default(grads, weights_BE, feature)  # type: ignore[no-any-return]


def pooled_logits(features: Tensor, weight: Tensor, bias: Tensor, *, axis: int) -> list[float]:
    """Return `linear(mean over positions)` of one dense feature map, (1, ...) with 4 axes, float32.

    Channels are at `axis`, 1 or 3. `weight` is (E, C) and `bias` (E,), both in float32.
    """
    return torch.ops.dggraph.pooled_logits.default(features, weight, bias, axis)  # type: ignore[no-any-return]


def empty_rows(num_rows: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised (num_rows, ...) tensor with the memory layout of `like`."""
    if like.is_contiguous():
        return torch.empty((num_rows, *like.shape[1:]), dtype=dtype, device=like.device)
    row = torch.empty_like(like[:1], dtype=dtype)
    return torch.empty_strided(
        (num_rows, *like.shape[1:]),
        (row.numel(), *row.stride()[1:]),
        dtype=dtype,
        device=like.device,
    )


def load() -> bool:
    """Load the kernels built for this installation, and return whether that succeeded.

    The result is cached.
    """
    return not _load()


def status() -> str:
    """Return one line for users: where the kernels are, or why they are off and what to do."""
    folder = location()
    when = " with the package" if folder.parent == INSTALLED else ""
    return _load() or f"built{when}: {folder}"


def location() -> Path:
    """The folder of the library for this source, torch, Python and CPU.

    It is in the package, if the installation built an intact one, else in the user's cache.
    """
    name = build_name()
    if _is_intact(INSTALLED / name):
        return INSTALLED / name
    return cache_folder() / "kernels" / name


def build_name() -> str:
    """The name of the library's folder, for this source, torch, Python and CPU."""
    python = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    key = hashlib.sha256(SOURCE.read_bytes() + json.dumps(_flags()).encode()).hexdigest()[:16]
    return f"torch-{torch.__version__}-{python}-{key}"


def build() -> Path:
    """Compile the kernels, unless an intact library exists; the next aggregation uses them.

    Returns:
        The folder of the library.

    Raises:
        KernelError: there is no compiler or no ninja, the cache cannot be written, or the compiler
            failed; the message says which.
    """
    folder = location()
    try:
        if not (load() and _is_intact(folder)):
            build_into(folder)
    except OSError as error:
        raise KernelError(
            f"the C++ kernels could not be built into {folder}: {error}. Set XDG_CACHE_HOME to a"
            " folder that can be written."
        ) from error
    _load.cache_clear()
    return folder


def build_into(folder: Path) -> None:
    """Compile in a scratch folder and rename it, so that `folder` is complete or absent.

    Raises:
        KernelError: there is no compiler or no ninja, or the compiler failed.
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix="building-") as scratch:
        work, ready = Path(scratch, "work"), Path(scratch, "ready")
        work.mkdir()
        ready.mkdir()
        _compile(work)
        library = (work / f"{_NAME}.so").rename(ready / f"{_NAME}.so")
        (ready / "sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        if folder.exists():
            folder.rename(Path(scratch, "broken"))
        try:
            ready.rename(folder)
        except OSError:
            if not _is_intact(folder):  # else another process was faster
                raise


def _compile(work: Path) -> None:
    """Compile and load the library in a subprocess.

    A library that cannot be loaded then ends the subprocess, not this process.
    """
    options = {
        "name": _NAME,
        "sources": [str(SOURCE)],
        "extra_cflags": _flags(),
        "extra_ldflags": ["-fopenmp"] if "-fopenmp" in _flags() else [],
        "build_directory": str(work),
        "with_cuda": False,
        "is_python_module": False,
    }
    program = (
        "import json, sys; from torch.utils.cpp_extension import load;"
        " load(**json.loads(sys.argv[1]))"
    )
    # pip installs ninja here, whether or not the environment is activated
    scripts = sysconfig.get_path("scripts")
    environment = {**os.environ, "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
    command = [sys.executable, "-c", program, json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line] or [
            f"exit code {done.returncode}"
        ]
        raise KernelError(
            f"the C++ kernels could not be built: {' | '.join(lines[:3])}. They need a C++"
            " compiler and ninja (pip install 'dggraph[kernels]'). Everything works without them,"
            " but slower."
        )


def _flags() -> list[str]:
    instructions = INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), "").split()
    return ["-O3", *(["-fopenmp"] if sys.platform == "linux" else []), *instructions]


def _is_intact(folder: Path) -> bool:
    """Whether the library has the recorded digest.

    Loading a truncated library would crash the process instead of raising an error.
    """
    try:
        return (
            hashlib.sha256((folder / f"{_NAME}.so").read_bytes()).hexdigest()
            == (folder / "sha256").read_text()
        )
    except OSError:
        return False


@cache
def _load() -> str:
    """Return an empty string once the kernels are loaded, else the reason why they are not."""
    if os.environ.get("DGGRAPH_KERNELS") == "0":
        return "turned off by DGGRAPH_KERNELS=0"
    folder = location()
    if not folder.exists():
        return f"not built ({HOW})"
    try:
        if not _is_intact(folder):
            raise OSError("the library is missing, or its digest does not match")
        with _lock:
            if not hasattr(torch.ops.dggraph, "sum_rows"):
                torch.ops.load_library(folder / f"{_NAME}.so")  # type: ignore[no-untyped-call]
                _register()
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"the C++ kernels in {folder} cannot be loaded ({error}); aggregation runs in plain"
            f" torch, which is slower. Build them again with `{HOW}`.",
            RuntimeWarning,
            stacklevel=2,
        )
        return f"broken ({HOW}): {error}"
    return ""


def _register() -> None:
    """Register fake implementations for compilers, and the gradient of `sum_rows`.

    As in `aggregation`, the weight of a closed edge gets a gradient too.
    """

    def fake_sum_rows(
        features: Sequence[Tensor], places_ER: Tensor | None, weights_ER: Tensor
    ) -> Tensor:
        return empty_rows(weights_ER.shape[1], features[0], features[0].dtype)

    def fake_inner_products(features: Sequence[Tensor], grad: Tensor) -> Tensor:
        return grad.new_empty(
            (grad.shape[0], len(features)), dtype=torch.promote_types(grad.dtype, torch.float32)
        )

    def fake_sum_and_products(
        grads: Sequence[Tensor], weights_BE: Tensor, feature: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = empty_rows(feature.shape[0], feature, feature.dtype)
        return total, feature.new_empty((feature.shape[0], len(grads)))

    def remember(
        ctx: Any, inputs: tuple[Sequence[Tensor], Tensor | None, Tensor], output: Tensor
    ) -> None:
        features, places_ER, weights_ER = inputs
        ctx.save_for_backward(places_ER, weights_ER, *features)

    def backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, Tensor]:
        places_ER, weights_ER, *features = ctx.saved_tensors
        pairs = [
            edge_gradients(
                feature, None if places_ER is None else places_ER[edge], weights_ER[edge], grad
            )
            for edge, feature in enumerate(features)
        ]
        return [one for one, _ in pairs], None, torch.stack([one for _, one in pairs])

    torch.library.register_fake("dggraph::sum_rows", fake_sum_rows)
    torch.library.register_fake("dggraph::inner_products", fake_inner_products)
    torch.library.register_fake("dggraph::sum_and_products", fake_sum_and_products)
    torch.library.register_autograd("dggraph::sum_rows", backward, setup_context=remember)


def edge_gradients(
    feature: Tensor, place_R: Tensor | None, weight_R: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of one edge: of its source (B, ...) and of its weight (R,).

    The place of a closed edge may lie outside the source; no gradient flows there.
    """
    spread = [-1, *[1] * (grad.ndim - 1)]
    weight = weight_R.to(grad.dtype).reshape(spread)
    flow = torch.where(weight != 0, grad * weight, 0.0)
    if place_R is None:
        taken, grad_feature = feature, flow
    else:
        is_inside = (place_R >= 0) & (place_R < len(feature))
        padded = torch.cat([feature, feature.new_zeros((1, *feature.shape[1:]))])
        place_R = torch.where(is_inside, place_R, len(feature))
        taken = padded.index_select(0, place_R)
        grad_feature = torch.zeros_like(padded).index_add(0, place_R, flow)[: len(feature)]
    wide = torch.promote_types(grad.dtype, torch.float32)
    finite = torch.where(torch.isfinite(taken), taken, 0.0)
    return grad_feature, (finite.to(wide) * grad.to(wide)).flatten(1).sum(1).to(weight_R.dtype)
