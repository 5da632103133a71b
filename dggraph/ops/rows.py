"""Weighted sums over rows, for hosts that know the weights: closed edges cost nothing.

In the sparse executor a node holds only the rows of the instances that reached it. Each edge
therefore says in which row of its source it finds an instance.

Shape suffixes: R rows of the result, E edges. `places_RE` holds row numbers, or is None where every
source has the same R instances. `weights_RE` is 0 where an edge is closed; its place is then
meaningless. These functions have no gradient.
"""

from collections.abc import Sequence
from functools import reduce
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dggraph.ops import device_kernels, kernels
from dggraph.ops.device_copies import to_device, upload
from dggraph.ops.kernels import empty_rows

Places = npt.NDArray[np.int64]
Weights = npt.NDArray[Any]

LARGE_ROW = 1 << 14
"""Elements of one instance above which a pass per open edge and row is cheaper than a gather."""

FEW_ROWS = 32
"""Rows up to which a matrix product is cheaper than a gather: it multiplies all pairs of rows."""

BLOCK = 1 << 21
"""Elements of a sum that stay in the last-level cache while all its sources are added."""


def sum_rows(
    features: Sequence[Tensor | None],
    places_RE: Places | None,
    weights_RE: Weights,
    *,
    may_alias: bool,
) -> Tensor:
    """Sum rows over edges: row r is the sum over e of weights[r, e] * features[e][places[r, e]].

    Closed edges are left out.

    Args:
        features: for each edge (rows of its source, ...), or None where no instance reached it; not
            all may be None.
        places_RE: row numbers.
        weights_RE: 0 where an edge is closed.
        may_alias: whether the caller never writes to the result, so that a source that needs no
            change may be returned itself.
    """
    is_open_RE = weights_RE != 0
    is_used_E = is_open_RE.any(axis=0).tolist()
    opened = [
        (edge, feature)
        for edge, feature in enumerate(features)
        if feature is not None and is_used_E[edge]
    ]
    if not opened:
        like = next(feature for feature in features if feature is not None)
        return empty_rows(len(weights_RE), like, like.dtype).zero_()
    first, like = opened[0]
    columns = [None if places_RE is None else places_RE[:, edge] for edge in range(len(features))]
    if (
        may_alias
        and len(opened) == 1
        and _is_whole(like, columns[first])
        and bool((weights_RE[:, first] == 1).all())
    ):
        return like
    sources = [feature for _, feature in opened]
    dtype = reduce(torch.promote_types, (source.dtype for source in sources))
    edges = [edge for edge, _ in opened]
    if device_kernels.is_usable(sources):
        known = [weights_RE[:, edges]] + ([] if places_RE is None else [places_RE[:, edges]])
        weights, *places = upload(known, like.device)
        return device_kernels.sum_rows(sources, places[0] if places else None, weights)
    # 16-bit sums must round after each term, as the backbone's adds do; the kernels round once.
    if dtype.itemsize >= 4 and kernels.is_usable(sources):
        return kernels.sum_rows(
            sources, None if places_RE is None else places_RE[:, edges], weights_RE[:, edges]
        )
    total = empty_rows(len(weights_RE), like, dtype)
    if like.device.type == "cpu" and like[:1].numel() >= LARGE_ROW:
        is_dense = (
            len(total) > 1
            and is_open_RE.all()
            and all(_is_whole(feature, columns[edge]) for edge, feature in opened)
        )
        # 16-bit weights would be rounded
        if is_dense and len(opened) == len(features) and dtype.itemsize >= 4:
            _sum_blocks(total, sources, weights_RE)
        else:
            _sum_each_row(total, opened, columns, weights_RE)
        return total
    if places_RE is not None and _sum_by_product(total, opened, places_RE, weights_RE):
        return total
    if not is_open_RE[:, first].all():
        # the identity of IEEE addition: x + -0.0 is bitwise x, also for x = -0.0
        total.fill_(-0.0)
    for edge, feature in opened:
        rows, column = np.flatnonzero(is_open_RE[:, edge]), columns[edge]
        weights = _on_device(weights_RE[rows, edge], like).to(dtype)
        weights = weights.reshape(-1, *[1] * (like.ndim - 1))
        if len(rows) < len(weights_RE):
            taken = take_rows(feature, rows if column is None else column[rows])
            total.index_add_(0, _on_device(rows, like), (taken * weights).to(dtype))
        elif edge == first:
            torch.mul(take_rows(feature, column), weights, out=total)
        else:
            total.addcmul_(take_rows(feature, column).to(dtype), weights)
    return total


def concatenate_rows(
    features: Sequence[Tensor | None],
    channels: Sequence[int],
    places_RE: Places | None,
    weights_RE: Weights,
    channel_axis: int,
) -> Tensor:
    """Concatenate rows of a growing concat: `channels[e]` channels per edge, zeros if closed."""
    like = next(feature for feature in features if feature is not None)
    operands: list[Tensor] = []
    for edge, feature in enumerate(features):
        if feature is None or not (weights_RE[:, edge] != 0).any():
            shape = [len(weights_RE), *like.shape[1:]]
            shape[channel_axis] = channels[edge]
            operands.append(zeros(shape, like))
        else:
            place = slice(edge, edge + 1)
            places = None if places_RE is None else places_RE[:, place]
            operands.append(sum_rows([feature], places, weights_RE[:, place], may_alias=True))
    return torch.cat(operands, dim=channel_axis)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return zeros of `shape`, in channels-last layout if `like` has it.

    A sum or concat with one operand in another layout would lose its own.
    """
    is_last = (
        like.ndim == 4
        and like.is_contiguous(memory_format=torch.channels_last)
        and not like.is_contiguous()
    )
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(
        tuple(shape), dtype=like.dtype, device=like.device, memory_format=layout
    ).zero_()


def take_rows(value: Tensor, places: Places | None) -> Tensor:
    """Return rows `places` of `value`, or `value` itself if these are all its rows in order."""
    if places is None or _is_whole(value, places):
        return value
    index = _on_device(places, value)
    if value.is_contiguous():
        return value.index_select(0, index)
    return value[index]  # which keeps channels-last layout, at twice the time


def _sum_blocks(total: Tensor, sources: Sequence[Tensor], weights_RE: Weights) -> None:
    """Sum blocks of rows that fit in the cache; every edge is open and every row in its place.

    Blocks are as large as the cache allows, since each op has a fixed cost.
    """
    weights = torch.as_tensor(weights_RE, dtype=total.dtype, device="cpu").reshape(
        len(total), -1, *[1] * (total.ndim - 1)
    )
    first, *others = sources
    step = max(1, BLOCK // total[:1].numel())
    for start in range(0, len(total), step):
        place = slice(start, start + step)
        torch.mul(first[place], weights[place, 0], out=total[place])
        for edge, source in enumerate(others, start=1):
            total[place].addcmul_(source[place].to(total.dtype), weights[place, edge])


def _sum_by_product(
    total: Tensor, opened: Sequence[tuple[int, Tensor]], places_RE: Places, weights_RE: Weights
) -> bool:
    """Sum few small rows as a product with a matrix for each source, mostly of zeros.

    That is one op for each source instead of a gather, a product and a scattered sum. A zero times
    inf or NaN would be NaN, so a result that is not finite does not count.

    Returns:
        Whether `total` now holds the sum.
    """
    dtype, sources = total.dtype, [feature for _, feature in opened]
    if (
        total.device.type != "cpu"
        or any(source.dtype != dtype for source in sources)
        or max(map(len, (total, *sources))) > FEW_ROWS
        or dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or torch.get_float32_matmul_precision() != "highest"
    ):
        return False
    flat_RF, is_first = _flat_rows(total), True
    for edge, source in opened:
        flat_SF = _flat_rows(source)
        if flat_RF is None or flat_SF is None or source.stride()[1:] != total.stride()[1:]:
            return False
        matrix_RS = np.zeros((len(total), len(source)), flat_RF.numpy().dtype)
        rows = np.flatnonzero(weights_RE[:, edge])
        matrix_RS[rows, places_RE[rows, edge]] = weights_RE[rows, edge]
        torch.addmm(
            flat_RF, torch.from_numpy(matrix_RS), flat_SF, beta=0 if is_first else 1, out=flat_RF
        )
        is_first = False
    assert flat_RF is not None
    return isfinite(flat_RF.sum().item())


def _flat_rows(value: Tensor) -> Tensor | None:
    """Return a view (rows, elements) of contiguous or channels-last rows, else None."""
    if value.is_contiguous():
        return value.view(len(value), -1)
    if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last):
        return value.permute(0, 2, 3, 1).view(len(value), -1)
    return None


def _sum_each_row(
    total: Tensor,
    opened: Sequence[tuple[int, Tensor]],
    columns: Sequence[Places | None],
    weights_RE: Weights,
) -> None:
    """Sum one row at a time, which stays in the cache."""
    weights = weights_RE.tolist()
    places = [
        range(len(total)) if (column := columns[edge]) is None else column.tolist()
        for edge, _ in opened
    ]
    sources = [feature.unbind(0) for _, feature in opened]
    for r, row in enumerate(total.unbind(0)):
        is_empty = True
        for (edge, _), place, source in zip(opened, places, sources, strict=True):
            weight = weights[r][edge]
            if weight == 0:
                continue
            if not is_empty:
                row.add_(source[place[r]], alpha=weight)
            elif weight == 1:
                row.copy_(source[place[r]])
            else:
                torch.mul(source[place[r]], weight, out=row)
            is_empty = False
        if is_empty:
            row.zero_()


def _is_whole(feature: Tensor, places: Places | None) -> bool:
    return places is None or (
        len(places) == len(feature) and bool((places == np.arange(len(places))).all())
    )


def _on_device(values: npt.NDArray[Any], like: Tensor) -> Tensor:
    return to_device(torch.from_numpy(np.ascontiguousarray(values)), like.device)
