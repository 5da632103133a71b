"""Which sample comes when, and with which random numbers, as functions of a seed: nothing to store,
nothing to restore.

A run that stops after any step and goes on from there sees the same samples, augmented the same
way, whatever the number of loader workers or processes. Order: a permutation of f(seed, epoch).
Augmentation: torch's generator seeded by f(seed, epoch, index) around each sample.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

Place = tuple[int, int]
"""(epoch, index) of a sample."""


def seed_of(*parts: int) -> int:
    """A seed of 63 bits that no other `parts` share, for all one will ever meet."""
    text = ",".join(str(int(part)) for part in parts).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def permutation(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of `epoch`, (num_samples,) int64."""
    return torch.randperm(
        num_samples, generator=torch.Generator().manual_seed(seed_of(seed, epoch))
    )


class EpochBatches(Sampler[list[Place]]):
    """The batches of one process in one epoch; the last samples that fill no global batch wait for
    another epoch's order.

    Args:
        groups: of each sample of the data set; a global batch has samples of one group, for example
            images that are all wide.
        batch_size: of one process; a global batch is `batch_size * world_size` neighbours in the
            epoch's order of their group, so one process with that batch size sees the same global
            batches.
        seed: of the run.
        epoch: counts from 0.
        rank: of this process.
        world_size: number of processes.
        first: global batches of this epoch that are done already.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        first: int = 0,
    ) -> None:
        self.groups, self.seed, self.epoch, self.first = groups, seed, epoch, first
        self.mine, self.global_size = (
            slice(rank * batch_size, (rank + 1) * batch_size),
            batch_size * world_size,
        )

    def __len__(self) -> int:
        return (
            sum(count // self.global_size for count in Counter(self.groups).values()) - self.first
        )

    def __iter__(self) -> Iterator[list[Place]]:
        waiting: dict[int, list[int]] = {group: [] for group in self.groups}
        number = 0
        for index in permutation(len(self.groups), self.seed, self.epoch).tolist():
            batch = waiting[self.groups[index]]
            batch.append(index)
            if len(batch) == self.global_size:
                if number >= self.first:
                    yield [(self.epoch, index) for index in batch[self.mine]]
                number += 1
                batch.clear()


class SeededDataset(Dataset[Any]):
    """`dataset`, asked for (epoch, index), with torch's generator seeded for each sample and put
    back afterwards.

    What draws from `random` or numpy instead is not reproduced.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: Place) -> Any:
        epoch, index = place
        before = torch.random.get_rng_state()
        torch.default_generator.manual_seed(
            seed_of(self.seed, epoch, index)
        )  # torch.manual_seed would reseed GPUs too
        try:
            return self.dataset[index]
        finally:
            torch.random.set_rng_state(before)
