"""Copies of small tensors between host and GPU; the arithmetic of joining them runs anywhere."""

import numpy as np
import pytest
import torch

from dggraph.ops.device_copies import (
    constant,
    join,
    number,
    pack,
    split,
    to_device,
    to_host,
    to_lists,
    unpack,
    upload,
)


def test_tensors_come_to_the_host_as_they_are() -> None:
    raw, threshold, flags = torch.randn(3, 4), torch.tensor(0.5), torch.tensor([True, False])
    arrays = to_host(raw, threshold, flags)
    for array, tensor in zip(arrays, (raw, threshold, flags), strict=True):
        assert np.array_equal(array, tensor.numpy())
        assert array.dtype == tensor.numpy().dtype


def test_bfloat16_comes_as_float32() -> None:
    (array,) = to_host(torch.tensor([[1.5, torch.nan]], dtype=torch.bfloat16))
    assert array.dtype == np.float32
    assert np.array_equal(array, [[1.5, np.nan]], equal_nan=True)


def test_numbers_follow_changes_in_place() -> None:
    threshold = torch.tensor(0.5)
    assert number(threshold) == 0.5
    threshold.fill_(0.25)
    assert number(threshold) == 0.25
    threshold.data.fill_(0.75)
    assert number(threshold) == 0.75


@pytest.mark.gpu
def test_numbers_on_a_gpu_are_read_again_after_changes_alone() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here to read from")
    threshold = torch.tensor(0.5, device="cuda")
    assert number(threshold) == 0.5
    threshold.fill_(0.25)
    assert number(threshold) == 0.25


def test_lists_are_those_of_tensors() -> None:
    rows, bound = to_lists(torch.tensor([[0.5, 1.0]]), torch.tensor(0.25))
    assert rows == [[0.5, 1.0]]
    assert bound == 0.25


def test_gradients_do_not_hinder() -> None:
    (array,) = to_host(torch.ones(2, requires_grad=True) * 2)
    assert array.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), ()], [(0, 4), (5,), (), (1, 2, 2)]])
def test_split_is_the_inverse_of_join(shapes: list[tuple[int, ...]]) -> None:
    values = [torch.randn(shape) for shape in shapes]
    flat = join([one.transpose(0, -1) if one.ndim > 1 else one for one in values])
    assert flat.ndim == 1
    for array, tensor in zip(split(join(values).numpy(), shapes), values, strict=True):
        assert np.array_equal(array, tensor.numpy())


def test_unpack_is_the_inverse_of_pack() -> None:
    values = [
        torch.randn(3, 5),
        torch.arange(7),
        torch.zeros(0, 4),
        torch.tensor([True, False, True]),
        torch.randn(2, 1, dtype=torch.float64),
    ]
    values = [one.cpu() for one in values]
    buffer = pack(values)
    assert buffer.dtype == torch.uint8
    for found, expected in zip(unpack(buffer, values), values, strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert (found.data_ptr() - buffer.data_ptr()) % 16 == 0


def test_uploads_are_the_arrays() -> None:
    places, weights = np.arange(12).reshape(3, 4)[:, ::2], np.ones((3, 2), np.float32)
    found = upload([places, weights], torch.device("cpu"))
    assert [one.tolist() for one in found] == [places.tolist(), weights.tolist()]


def test_constants_have_type_and_device_of_their_model() -> None:
    found = constant([1.0, 2.5], torch.zeros(1, dtype=torch.float64))
    assert found.dtype == torch.float64
    assert found.tolist() == [1.0, 2.5]
    assert constant([1.0], torch.zeros(1, device="meta")).device.type == "meta"


@pytest.mark.gpu
def test_copies_do_not_wait_for_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here to copy to")
    device = torch.device("cuda")
    raw, threshold = torch.randn(3, 4, device=device), torch.tensor(0.5, device=device)
    expected = raw.cpu().numpy()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weights, bound = to_host(raw, threshold)
        back = to_device(torch.from_numpy(weights.copy()), device)
        places, again = upload([np.arange(3), weights], device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(weights, expected)
    assert bound.shape == ()
    assert float(bound) == 0.5
    assert torch.equal(back, raw)
    assert torch.equal(again, raw)
    assert places.tolist() == [0, 1, 2]
