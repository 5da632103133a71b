"""Orders and seeds are functions of the seed alone; processes and resumed runs see the batches that
one uninterrupted process sees.
"""

import torch
from torch.utils.data import Dataset

from dggraph.data.sampler import EpochBatches, SeededDataset, permutation, seed_of


class Noise(Dataset):
    """Draws what an augmentation would."""

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(()))


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    first, second = permutation(100, 7, 0), permutation(100, 7, 1)
    assert sorted(first.tolist()) == list(range(100))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(100, 7, 0))
    assert seed_of(1, 23) != seed_of(12, 3)


def test_two_processes_share_the_batches_of_one() -> None:
    alone = list(EpochBatches([0] * 23, 4, seed=3, epoch=2))
    parts = [
        list(EpochBatches([0] * 23, 2, seed=3, epoch=2, rank=rank, world_size=2))
        for rank in range(2)
    ]
    assert len(alone) == 5
    assert [a + b for a, b in zip(*parts, strict=True)] == alone


def test_a_resumed_epoch_is_the_rest_of_it() -> None:
    whole = list(EpochBatches([0] * 50, 8, seed=1, epoch=4))
    rest = EpochBatches([0] * 50, 8, seed=1, epoch=4, first=4)
    assert list(rest) == whole[4:]
    assert len(rest) == 2


def test_an_epoch_may_end_early() -> None:
    whole = list(EpochBatches([0] * 50, 8, seed=1, epoch=4))
    for most, count in ((1, 1), (4, 4), (6, 6), (9, 6)):
        batches = EpochBatches([0] * 50, 8, seed=1, epoch=4, most=most)
        assert list(batches) == whole[:count]
        assert len(batches) == count
    rest = EpochBatches([0] * 50, 8, seed=1, epoch=4, first=2, most=5)
    assert list(rest) == whole[2:5]
    assert len(rest) == 3


def test_batches_are_of_one_group_and_every_image_comes_at_most_once() -> None:
    is_tall = [index % 3 == 0 for index in range(50)]
    whole = list(EpochBatches(is_tall, 4, seed=1, epoch=2))
    assert all(
        len({is_tall[index] for _, index in batch}) == 1 and len(batch) == 4 for batch in whole
    )
    seen = [index for batch in whole for _, index in batch]
    assert len(seen) == len(set(seen)) == 16 + 32, "17 tall and 33 wide ones"
    assert whole != list(EpochBatches(is_tall, 4, seed=1, epoch=3))
    assert {epoch for batch in whole for epoch, _ in batch} == {2}
    assert list(EpochBatches(is_tall, 4, seed=1, epoch=2, first=5)) == whole[5:]
    halves = [
        list(EpochBatches(is_tall, 2, seed=1, epoch=2, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    assert [one + two for one, two in zip(*halves, strict=True)] == whole


def test_a_sample_draws_the_same_whenever_it_is_asked_for() -> None:
    data = SeededDataset(Noise(), seed=5)
    torch.manual_seed(0)
    first = data[1, 3]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    again, other_epoch, other_index = data[1, 3], data[2, 3], data[1, 4]
    assert again == first
    assert other_epoch[1] != first[1]
    assert other_index[1] != first[1]
    assert torch.equal(torch.rand(3), expected), "the caller's generator is as it was"
