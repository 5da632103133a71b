"""Sums over edges with several weights: values and gradients against plain expressions."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dggraph.ops.granularity import close_parts, largest, mean_of_parts, settle_parts
from dggraph.ops.part_sums import sum_parts, sum_rows_of_parts

SHAPES = {"channel": (4, 1, 1), "pixel": (1, 3, 5), "both": (4, 3, 5)}


def case(shape: tuple[int, ...], num_edges: int = 3) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    features = [
        torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(num_edges)
    ]
    parts = torch.rand(2, num_edges, *shape, generator=generator, dtype=torch.float64) + 0.1
    return features, parts


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_the_plain_sum_with_its_gradients(shape: tuple[int, ...]) -> None:
    features, parts = case(shape)
    expected = sum(parts[:, edge] * feature for edge, feature in enumerate(features))
    assert torch.allclose(sum_parts(features, parts), expected, atol=1e-14)
    wanted = [one.requires_grad_() for one in (parts, *features)]
    torch.autograd.gradcheck(lambda parts, *features: sum_parts(features, parts), wanted)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_closed_edge_contributes_nothing_at_all(shape: tuple[int, ...]) -> None:
    features, parts = case(shape)
    parts[0, 1] = 0
    features[1][0] = torch.inf
    wanted = [one.requires_grad_() for one in (parts, *features)]
    total = sum_parts(features, parts)
    assert torch.equal(total[0], parts[0, 0] * features[0][0] + parts[0, 2] * features[2][0])
    grads = torch.autograd.grad(total.sum(), wanted)
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert not grads[2][0].any()
    assert grads[2][1].any()


def test_the_weight_of_a_closed_edge_gets_its_gradient() -> None:
    features, parts = case((4, 1, 1))
    parts[:, 1] = 0
    parts.requires_grad_()
    (grad,) = torch.autograd.grad(sum_parts(features, parts).sum(), parts)
    assert torch.allclose(grad[:, 1, :, 0, 0], features[1].sum((2, 3)), atol=1e-12)


def test_rows_find_their_sources_and_parts() -> None:
    features, _parts = case((4, 1, 1), num_edges=2)
    places = np.array([[1, 0], [0, 1], [1, 1]])
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    own = torch.rand(3, 2, 4, 1, 1, dtype=torch.float64)
    total = sum_rows_of_parts(features, places, weights, own)
    assert torch.equal(total[0], features[0][1] * own[0, 0])
    assert torch.allclose(total[1], features[0][0] * own[1, 0] + features[1][1] * own[1, 1])
    assert torch.equal(total[2], features[1][1] * own[2, 1])
    unreached = sum_rows_of_parts([None, features[1]], places, weights, own)
    assert torch.equal(unreached[0], torch.zeros(4, 3, 5, dtype=torch.float64))


def test_parts_close_with_their_edge_and_open_with_the_rule_for_out() -> None:
    parts = torch.tensor([[[0.2, 0.9], [0.2, 0.4], [0.1, 0.3]]])[..., None]
    raw = largest(parts)
    assert torch.equal(raw, torch.tensor([[0.9, 0.4, 0.3]]))
    weights = torch.tensor([[0.9, 0.0, 1.0]])  # the last one was opened by the rule
    settled = close_parts(parts, raw, weights, 0.5)
    assert settled[0, :, :, 0].tolist() == [pytest.approx([0.2, 0.9]), [0, 0], [1, 1]]
    assert mean_of_parts(settled).tolist() == [pytest.approx([0.55, 0, 1])]


def test_the_gradient_passes_closed_edges_of_live_sources_alone() -> None:
    parts = torch.tensor([[[0.2, 0.9], [0.2, 0.4], [0.1, 0.3]]])[..., None].requires_grad_()
    raw, threshold = largest(parts), torch.tensor(0.5)
    weights, live = torch.tensor([[0.9, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    settled = settle_parts(parts, raw, weights, live, threshold, training=True)
    (grad,) = torch.autograd.grad(settled.sum(), parts)
    assert grad[0, :, :, 0].tolist() == [[1, 1], [1, 1], [0, 0]]
    columns = [None, torch.tensor([True]), torch.tensor([False])]
    again = settle_parts(parts, raw, weights, columns, threshold, training=True)
    assert torch.equal(torch.autograd.grad(again.sum(), parts)[0], grad)
    settled = settle_parts(parts, raw, weights, live, threshold, training=False)
    (grad,) = torch.autograd.grad(settled.sum(), parts)
    assert grad[0, :, :, 0].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_mean_of_zero_still_counts_as_open() -> None:
    mean = mean_of_parts(torch.tensor([[[1.0, -1.0], [0.0, 0.0]]]))
    assert (mean != 0).tolist() == [[True, False]]
