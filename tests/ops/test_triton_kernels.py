"""The Triton kernels without a GPU: in the interpreter, and compiled ahead for two cards."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dggraph.ops import triton_kernels
from dggraph.ops.triton_kernels import (
    BLOCK,
    NUM_WARPS,
    flow_kernel,
    flow_warps,
    product_kernel,
    sum_kernel,
)

pytestmark = pytest.mark.cpu

CARDS = {80: "sm_80", 90: "sm_90a"}
MAX_REGISTERS = 64
"""The most for a thread; above, fewer than 1,024 threads of a multiprocessor can run at once."""
MAX_SPILLED = 8
"""Bytes: one register, stored and loaded; in a variant for odd sizes the assembler wants that."""


def test_values_in_the_interpreter() -> None:
    """It must be chosen before triton is imported, hence the process of its own."""
    folder = Path(__file__).parent
    options = ["-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "test_triton_values.py")],
        cwd=folder.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d+ passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout, done.stdout


def warps_of(kernel: Any, dtype: str, num_sources: int) -> int:
    return flow_warps(num_sources, is_half=dtype == "fp16") if kernel is flow_kernel else NUM_WARPS


def compiled(kernel: Any, card: int, **constants: Any) -> dict[str, Any]:
    """Compile one variant as the launch in `triton_ops` would.

    Args:
        kernel: One of the three kernels.
        card: Compute capability times ten.
        constants: dtype of the features, whether there are `places`, whether `size` and pointers
            are multiples of 16, as they are unless given, and the kernel's own constants.
    """
    dtype, has_places = constants.pop("dtype"), constants.pop("has_places", True)
    is_even, is_aligned = constants.pop("is_even", True), constants.pop("is_aligned", True)
    constants |= {"BLOCK": BLOCK} if has_places else {"BLOCK": BLOCK, "places": None}
    types = {"weights": "*fp32", "parts": "*fp32", "places": "*i64"}
    types |= dict.fromkeys(["total", "grad", "feature", *[f"x{i}" for i in range(16)]], f"*{dtype}")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [
        (place,)
        for place, (name, of_type) in enumerate(signature.items())
        if (of_type.startswith("*") and is_aligned) or (name == "size" and is_even)
    ]
    source = ASTSource(
        kernel,
        signature,
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        {place: [["tt.divisibility", 16]] for place in aligned},
    )
    target = GPUTarget("cuda", card, 32)
    options = {"num_warps": warps_of(kernel, dtype, constants["NUM_SOURCES"])}
    return dict(triton.compile(source, target=target, options=options).asm)


def usage(ptx: str, card: int, folder: Path) -> tuple[int, int]:
    """Return the registers of a thread and the bytes it spills, as the assembler tells them."""
    (folder / "kernel.ptx").write_text(ptx)
    assembler = triton.knobs.nvidia.ptxas.path
    options = ["-v", f"--gpu-name={CARDS[card]}", "kernel.ptx", "-o", "kernel.cubin"]
    done = subprocess.run(
        [assembler, *options], cwd=folder, capture_output=True, text=True, check=True
    )
    registers = re.findall(r"Used (\d+) registers", done.stderr)
    spilled = re.findall(r"(\d+) bytes spill", done.stderr)
    assert len(registers) == 1, done.stderr
    assert spilled, done.stderr
    return int(registers[0]), sum(map(int, spilled))


def check(kernel: Any, card: int, folder: Path, **constants: Any) -> None:
    """Compile a variant; it spills one register at most, and loads 16 bytes at once."""
    assembly = compiled(kernel, card, **constants)
    assert assembly["cubin"]
    ptx = assembly["ptx"]
    registers, spilled = usage(ptx, card, folder)
    assert spilled <= MAX_SPILLED
    assert registers <= MAX_REGISTERS
    assert "atom." not in ptx
    assert "red.global" not in ptx
    wide = re.findall(r"ld\.global[.\w:]*\.v4\.b32", ptx)
    if constants.get("is_even", True) and constants.get("is_aligned", True):
        size = {"fp32": 4, "bf16": 2, "fp16": 2}[constants["dtype"]]
        warps = warps_of(kernel, constants["dtype"], constants["NUM_SOURCES"])
        loads = BLOCK // (32 * warps) * size // 16
        assert len(wide) >= constants["NUM_SOURCES"] * loads
    if constants["dtype"] == "bf16" and kernel is not product_kernel:
        assert "cvt.rn.bf16" in ptx, "sums must be rounded to nearest"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile anew; a kernel in the user's cache would hide that it no longer compiles."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("num_sources", [1, 4, 16])
def test_kernels_compile_for_cards(card: int, dtype: str, num_sources: int, tmp_path: Path) -> None:
    """Each value of each constant at least once; `-m slow` has all combinations."""
    is_short, is_odd = num_sources == 1, num_sources == 4
    check(
        sum_kernel,
        card,
        tmp_path,
        dtype=dtype,
        has_places=not is_short,
        is_even=not is_odd,
        NUM_SOURCES=num_sources,
        CONTINUES=num_sources == 16,
    )
    facts = {"dtype": dtype, "is_even": not is_odd}
    check(product_kernel, card, tmp_path, **facts, NUM_SOURCES=num_sources)
    continues = num_sources == 16
    check(flow_kernel, card, tmp_path, **facts, NUM_SOURCES=num_sources, CONTINUES=continues)


@pytest.mark.parametrize("kernel", [sum_kernel, product_kernel, flow_kernel])
def test_kernels_compile_for_pointers_into_the_middle(kernel: Any, tmp_path: Path) -> None:
    """As slices of tensors give them; then elements are loaded one by one."""
    constants = {} if kernel is product_kernel else {"CONTINUES": False}
    check(
        kernel,
        90,
        tmp_path,
        dtype="bf16",
        is_aligned=False,
        is_even=False,
        NUM_SOURCES=4,
        **constants,
    )


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("num_sources", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("is_even", [False, True])
def test_every_variant_compiles(
    card: int, dtype: str, num_sources: int, is_even: bool, tmp_path: Path
) -> None:
    variant = {"dtype": dtype, "NUM_SOURCES": num_sources, "is_even": is_even}
    check(product_kernel, card, tmp_path, **variant)
    for continues in (False, True):
        check(flow_kernel, card, tmp_path, **variant, CONTINUES=continues)
    for has_places in (False, True):
        for continues in (False, True):
            check(sum_kernel, card, tmp_path, **variant, has_places=has_places, CONTINUES=continues)


def test_the_largest_group_is_what_the_kernels_take() -> None:
    for kernel in (sum_kernel, product_kernel, flow_kernel):
        sources = [name for name in kernel.arg_names if re.fullmatch(r"x\d+", name)]
        assert len(sources) == triton_kernels.GROUP
