"""Triton kernels for the GPU: weighted row sums, inner products, and both in one pass over memory.

A row is one instance of a feature map, taken as a flat run of elements in memory order, so that
contiguous and channels-last maps are alike. A program of the grid handles one block of one row: it
keeps the row's weights and places in registers, loads only from sources whose weight is not 0, and
adds up in float32.

A launch reads up to `GROUP` sources, each an argument of its own, and longer sums continue in the
result. A table of addresses in device memory would cost a copy from the host for each sum, and a
loop over it would wait for every address before it could load; unrolled arguments have all loads of
a program under way at once, and compilers see which tensors are read. The number of sources is
rounded up to a power of two, so that few variants are compiled.

Sums of 16-bit features are rounded after each term, as the backbone's additions are. That makes
them equal to plain torch to the bit, and lets them continue exactly.

`triton_ops` launches them. Triton reads no type from a kernel's signature: `total`, `grad` and
`parts` are pointers to results or features, all other arguments are integers.
"""

import triton
import triton.language as tl

GROUP = 16
"""Sources that one launch reads; more would spill registers and compile for seconds."""

BLOCK = 1024
"""Elements of a row that one program handles: 8 a thread, which are two 16-byte loads at most."""

NUM_WARPS = 4


def flow_warps(num_sources: int, *, is_half: bool) -> int:
    """Return the warps of `flow_kernel`, which with 4 would spill registers.

    In float16 the compiler keeps the loads of 16 sources in registers: with 8 warps 116 a thread.
    """
    return 16 if is_half and num_sources == GROUP else 8


@triton.jit
def added(summed, element, weight, dtype: tl.constexpr):
    """Return summed + element * weight, rounded as the backbone's operations on `dtype` are."""
    term = (element.to(tl.float32) * weight).to(dtype).to(tl.float32)
    return (summed + term).to(dtype).to(tl.float32)


@triton.jit
def finite(element):
    """Return `element` in float32, 0 where it is not finite."""
    element = element.to(tl.float32)
    return tl.where(tl.abs(element) < float("inf"), element, 0.0)


@triton.jit(do_not_specialize=["num_edges", "weight_row", "weight_edge", "place_row", "place_edge"])
def sum_kernel(
    total,
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    x8,
    x9,
    x10,
    x11,
    x12,
    x13,
    x14,
    x15,
    weights,
    places,
    size,
    num_edges,
    weight_row,
    weight_edge,
    place_row,
    place_edge,
    NUM_SOURCES: tl.constexpr,
    CONTINUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write block `program_id` of the sums of all rows into `total`.

    Of the sources, those below `num_edges` are read; NUM_SOURCES is that, rounded up.
    `weights` and `places` are read with the strides given for a row and an edge; `places` may be
    None. If CONTINUES, the sources are added to what `total` holds.
    """
    sources = (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15)
    dtype: tl.constexpr = total.dtype.element_ty
    num_blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    column = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    if CONTINUES:
        summed = tl.load(total + row * size + column, mask=column < size, other=0.0)
        summed = summed.to(tl.float32)
    else:
        # -0.0, the identity of IEEE addition; `tl.full` would make +0.0 of it
        summed = tl.full((BLOCK,), -(1 << 31), tl.int32).to(tl.float32, bitcast=True)
    for edge in tl.static_range(NUM_SOURCES):
        weight = tl.load(
            weights + row * weight_row + edge * weight_edge, mask=edge < num_edges, other=0.0
        )
        weight = weight.to(dtype).to(tl.float32)
        # no element of a closed edge is loaded, and its place is not read either
        reach = tl.where(weight != 0, size, 0)
        if places is None:
            place = row
        else:
            place = tl.load(places + row * place_row + edge * place_edge, mask=weight != 0, other=0)
        element = tl.load(sources[edge] + place * size + column, mask=column < reach, other=0.0)
        summed = tl.where(column < reach, added(summed, element, weight, dtype), summed)
    tl.store(total + row * size + column, summed.to(dtype), mask=column < size)


@triton.jit(do_not_specialize=["first_edge", "num_edges", "all_edges"])
def product_kernel(
    parts,
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    x8,
    x9,
    x10,
    x11,
    x12,
    x13,
    x14,
    x15,
    grad,
    size,
    first_edge,
    num_edges,
    all_edges,
    NUM_SOURCES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write <source, grad> over block `program_id` for each source to parts[row, block, edge].

    Elements of the sources that are not finite count as 0.
    """
    sources = (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15)
    num_blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    column = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    flow = tl.load(grad + row * size + column, mask=column < size, other=0.0).to(tl.float32)
    part = parts + tl.program_id(0).to(tl.int64) * all_edges + first_edge
    for edge in tl.static_range(NUM_SOURCES):
        reach = tl.where(edge < num_edges, size, 0)
        element = tl.load(sources[edge] + row * size + column, mask=column < reach, other=0.0)
        tl.store(part + edge, tl.sum(finite(element) * flow, axis=0), mask=edge < num_edges)


@triton.jit(do_not_specialize=["first_edge", "num_edges", "all_edges", "weight_row", "weight_edge"])
def flow_kernel(
    total,
    parts,
    x0,
    x1,
    x2,
    x3,
    x4,
    x5,
    x6,
    x7,
    x8,
    x9,
    x10,
    x11,
    x12,
    x13,
    x14,
    x15,
    feature,
    weights,
    size,
    first_edge,
    num_edges,
    all_edges,
    weight_row,
    weight_edge,
    NUM_SOURCES: tl.constexpr,
    CONTINUES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Do both in one pass: `sum_kernel` over gradients, and their products with one feature.

    A gradient whose weight is 0 is left out of the sum, but has a product: a closed edge may open.
    """
    sources = (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15)
    dtype: tl.constexpr = total.dtype.element_ty
    num_blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    column = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    if CONTINUES:
        summed = tl.load(total + row * size + column, mask=column < size, other=0.0)
        summed = summed.to(tl.float32)
    else:
        summed = tl.full((BLOCK,), -(1 << 31), tl.int32).to(tl.float32, bitcast=True)
    read = finite(tl.load(feature + row * size + column, mask=column < size, other=0.0))
    part = parts + tl.program_id(0).to(tl.int64) * all_edges + first_edge
    for edge in tl.static_range(NUM_SOURCES):
        is_edge = edge < num_edges
        weight = tl.load(weights + row * weight_row + edge * weight_edge, mask=is_edge, other=0.0)
        weight = weight.to(dtype).to(tl.float32)
        reach = tl.where(is_edge, size, 0)
        element = tl.load(sources[edge] + row * size + column, mask=column < reach, other=0.0)
        open_reach = tl.where(weight != 0, size, 0)
        summed = tl.where(column < open_reach, added(summed, element, weight, dtype), summed)
        tl.store(part + edge, tl.sum(element.to(tl.float32) * read, axis=0), mask=is_edge)
    tl.store(total + row * size + column, summed.to(dtype), mask=column < size)
