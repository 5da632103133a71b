"""Evaluation in counts worked out by hand; and as a batch of any size, so of any number of
processes, gives them.
"""

import numpy as np
import pytest
import torch
from kinds import converted
from torch import nn
from torch.utils.data import TensorDataset

import dggraph
from dggraph.errors import InputError
from dggraph.evaluation.accuracy import evaluate

# One row an image, one logit a class; the right class beside it.
LOGITS = [
    ([9, 5, 4, 3, 2, 1], 0),  # right
    ([9, 5, 4, 3, 2, 1], 4),  # among five
    ([9, 5, 4, 3, 2, 1], 5),  # the sixth
    ([1, 2, 3, 4, 9, 5], 4),  # right
    ([1, 2, 3, 4, 9, 5], 1),  # among five
    ([1, 2, 3, 4, 9, 5], 4),  # right
    ([1, 2, 3, 4, 9, 5], 0),  # the sixth
]


def images() -> TensorDataset:
    return TensorDataset(
        torch.tensor([row for row, _ in LOGITS]).float(),
        torch.tensor([label for _, label in LOGITS]),
    )


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_counts_by_hand(batch_size: int) -> None:
    model = nn.Sequential(nn.Identity()).train()
    found = evaluate(model, images(), batch_size=batch_size)
    assert (found.num_images, found.top1, found.top5) == (7, 3, 5)
    assert found.class_images == (2, 1, 0, 0, 3, 1)
    assert found.class_top1 == (1, 0, 0, 0, 2, 0)
    assert found.accuracy == 3 / 7
    assert found.kept is None
    assert found.kept_percentiles is None
    assert found.num_paths is None
    assert model.training
    assert model[0].training


@pytest.mark.parametrize("router", ["node", "stage"])
@pytest.mark.parametrize("batch_size", [4, 11])
def test_what_paths_cost_is_what_records_say(router: str, batch_size: int) -> None:
    net = converted("kept", router)
    x, labels = torch.randn(11, 3, 16, 16) + 3 * torch.randn(11, 3, 1, 1), torch.arange(11) % 5
    found = evaluate(net, TensorDataset(x, labels), batch_size=batch_size)
    recording = dggraph.record(net, x)
    kept = recording.macs.double() / net.macs_table.static
    assert found.kept == pytest.approx(float(kept.mean()), abs=1e-12)
    assert found.kept_percentiles == pytest.approx(
        {p: float(np.percentile(kept.numpy(), p)) for p in (5, 25, 50, 75, 95)}, abs=1e-12
    )
    paths = [tuple(weight != 0 for weight in path.weights["layers"]) for path in recording.paths]
    assert found.num_paths == len(set(paths)) > 1
    shares = [paths.count(path) / 11 for path in set(paths)]
    assert found.path_entropy_bits == pytest.approx(
        -sum(share * np.log2(share) for share in shares)
    )
    assert found.top1 == int((recording.output.argmax(1) == labels).sum())


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputError, match="labels from 6 to 6, but the model has 6 outputs"):
        evaluate(nn.Identity(), TensorDataset(torch.zeros(1, 6), torch.tensor([6])))
    with pytest.raises(InputError, match=r"labels from -1 to 5, .* labels count from 0"):
        evaluate(nn.Identity(), TensorDataset(torch.zeros(2, 6), torch.tensor([5, -1])))
    with pytest.raises(InputError, match="no images"):
        evaluate(nn.Identity(), TensorDataset(torch.zeros(0, 6), torch.zeros(0)))
